//! Examples.

pub mod bench;
pub mod capture;
pub mod chat;
pub mod cli;
pub mod demo;
pub mod device;
pub mod fetch;
pub mod generate;
pub mod llama;
pub mod sampler;
pub mod tokenizer;
pub mod weights;
