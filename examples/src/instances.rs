//! Has the library compile the model for every CPU backend, so that no program does.
//!
//! A program runs on a device that is named at run time: each would compile the model and Burn's operations for each backend anew, two CPU minutes a program. In builds
//! of little optimisation, as those of tests are, rustc lets programs use what a library has compiled of generics; what is named here it compiles. Nothing of it
//! is called. Release builds share nothing and leave it out.

use std::hint::black_box;

use hira_attention::HiraBackend;

use crate::demo::{compare, measure_speed};
use crate::generate::generate;
use crate::llama::Llama;

/// On Flex.
#[cfg(feature = "flex")]
pub fn of_flex() {
    of::<burn_flex::Flex>();
}

/// On NdArray.
#[cfg(feature = "ndarray")]
pub fn of_ndarray() {
    of::<burn_ndarray::NdArray<f32>>();
}

fn of<B: HiraBackend>() {
    black_box([
        Llama::<B>::load as *const (),
        Llama::<B>::load_as as *const (),
        Llama::<B>::set_weights as *const (),
        Llama::<B>::set_attention as *const (),
        Llama::<B>::set_processor as *const (),
        Llama::<B>::new_cache as *const (),
        Llama::<B>::forward as *const (),
        Llama::<B>::forward_each as *const (),
        Llama::<B>::forward_all as *const (),
        Llama::<B>::forward_hidden as *const (),
        Llama::<B>::logits as *const (),
        generate::<B> as *const (),
        compare::<B> as *const (),
        measure_speed::<B> as *const (),
    ]);
}
