//! A Burn Llama whose attention can be dense or Hira's, and what the programs of this package share.
//!
//! | program | what it does |
//! |---|---|
//! | `llama` | answers a prompt with a GGUF file or a Hugging Face folder, with dense or Hira attention |
//! | `demo` | reads a long text, answers from one prefill with both, prints one table |
//! | `decode` | times decode steps of one model at several contexts: Burn's own attention, dense, Hira |
//! | `eval` | measures how far attention by each rule is from dense attention: a text, decoded tokens, recorded keys, tasks |
//! | `verify` | compares every selection on a capture with brute force |
//! | `bench_attention` | times one decode step's attention, cold, beside dense |
//! | `hira-gpu` | checks and times the device engine (features `cuda`, `wgpu`) |
//!
//! Start with [`llama::Llama`]: [`llama::Llama::load`] takes any [`weights::WeightSource`], and
//! [`llama::Llama::set_attention`] patches a loaded model in one call.

pub mod bench;
pub mod capture;
pub mod chat;
pub mod cli;
pub mod demo;
pub mod device;
pub mod element;
pub mod eval;
pub mod fetch;
pub mod generate;
pub mod gpu;
mod huge_pages;
#[cfg(debug_assertions)]
#[doc(hidden)]
pub mod instances;
pub mod llama;
mod palette;
pub mod program;
pub mod sampler;
pub mod saved;
mod threads;
pub mod tokenizer;
pub mod weights;
