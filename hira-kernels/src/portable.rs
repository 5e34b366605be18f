//! Portable code that the vector kernels compile for their own registers.
//!
//! The functions are written once, in lanes that a compiler can put into registers of any width; each instruction set gets a copy of
//! them, and the same bits, because Rust neither reorders nor fuses operations.

/// The methods of a capability token that run portable code compiled for `$features`, which the token must prove.
macro_rules! portable_methods {
    ($features:literal) => {
        portable_methods! { @each $features;
            fn box_sums(query: &[f32], lo: &[f32], hi: &[f32], out: &mut [f32]) = crate::boxes::box_sums;
            fn add_columns(rows: &[f32], sums: &mut [f64]) = crate::columns::add_columns;
            fn rows_below(
                rows: &[f32],
                dim: usize,
                limit: f32,
                precision: crate::Precision,
            ) -> usize = crate::columns::rows_below;
            fn round_values(
                precision: crate::Precision,
                values: &[f32],
                out: &mut [f32],
            ) = crate::precision::round_values;
            fn quantise_keys(
                keys: &[f32],
                centre: &[f32],
                first: usize,
                lines: &mut [crate::Line],
                norms: &mut [f32],
            ) = crate::sketch::quantise_keys;
            fn prepare_queries(group: &mut crate::QueryGroup) = crate::QueryGroup::quantise;
            fn product_encode(
                shape: crate::ProductShape,
                keys: &[f32],
                centre: &[f32],
                entries: &[f32],
                codes: &mut [u8],
                reaches: &mut [f32],
            ) = crate::product::encode;
            fn product_tables(
                tables: &mut crate::ProductTables,
                group: &crate::QueryGroup,
                product: crate::ProductView<'_>,
                centre: &[f32],
            ) = crate::ProductTables::fill;
            fn weigh_blocks(
                factors: crate::BlockFactors,
                unscored: &[f32],
                scored: &[f32],
                weights: &mut crate::BlockWeights,
            ) = crate::compensate::weigh_blocks;
            fn sum_blocks(
                weights: &crate::BlockWeights,
                here: std::ops::Range<usize>,
            ) -> crate::BlockTotals = crate::compensate::sum_blocks;
            fn sum_of_products(a: [&[f32]; 2], b: [&[f32]; 2]) -> f64 = crate::compensate::sum_of_products;
            fn flags_within(
                values: &[f32],
                within: std::ops::Range<f32>,
                flags: &mut [f32],
            ) -> usize = crate::compensate::flags_within;
            fn tail_weight(bounds: &[f32], tau: f32, exponent: f32) -> f64 = crate::scan::tail_weight;
            fn mass_weights(
                bounds: &[f32],
                reference: f32,
                exponent: f32,
                up: bool,
                weights: &mut [f32],
            ) = crate::mass::mass_weights;
        }
    };
    (@each $features:literal; $(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $portable:path;)*) => {
        $(
            pub(crate) fn $name(self, $($argument: $type),*) $(-> $result)? {
                #[target_feature(enable = $features)]
                fn vectorised($($argument: $type),*) $(-> $result)? {
                    $portable($($argument),*)
                }
                // SAFETY: the token proves that this machine has the target features of the function.
                unsafe { vectorised($($argument),*) }
            }
        )*
    };
}
pub(crate) use portable_methods;
