//! A Llama in Burn whose attention is Hira's: dense or sparse, over one key/value store.
//!
//! [`Llama::load`] reads any [`WeightSource`](crate::weights::WeightSource); [`Llama::set_attention`] patches a loaded model to
//! another attention in one call; [`Llama::forward`] takes tokens and a [`LlamaCache`] and gives the logits of the last one.
//! Prompts are processed in chunks of [`CHUNK`] tokens, so activations stay small and a progress callback fires.
//!
//! # Layouts, and why
//!
//! Every weight keeps the file's `[out, in]` layout and enters its product as a transposed view: on Flex that serves one token
//! (a row-wise dot product at memory speed) and a prompt equally, and a tied embedding is then its own output layer. Query,
//! key and value are one product. Heads are brought together by selecting rows, which copies whole rows; `swap_dims` and a copy
//! walk single elements on Flex and cost 35 times as much. A one-token product runs on every thread ([`Matrix`]), the
//! feed-forward layer as one piece of work a thread: a decode step is bound by reading the weights once.

mod burn_attention;
mod cache;
mod error;
mod layer;
mod loader;
mod matrix;
mod model;
mod pass;
mod rope;

pub use burn_attention::BurnAttention;
pub use cache::LlamaCache;
pub use error::LlamaError;
pub use layer::{
    DecoderLayer, DecoderLayerConfig, FeedForward, FeedForwardConfig, SelfAttention,
    SelfAttentionConfig,
};
pub use matrix::{Matrix, WeightPrecision};
pub use model::{AttentionChoice, CHUNK, Decoder, DecoderConfig, Llama};
pub use rope::{Rotary, RotaryConfig, RotarySpan, inverse_frequencies};
