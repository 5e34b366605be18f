//! The portable implementation, and the definition of what the others compute.

mod product;
mod scan;

pub(crate) use product::product_bounds;
pub(crate) use scan::{intervals, scan_block};

pub(crate) use crate::boxes::box_sums;
pub(crate) use crate::columns::{add_columns, rows_below};
pub(crate) use crate::compensate::{flags_within, sum_blocks, sum_of_products, weigh_blocks};
pub(crate) use crate::mass::{mass_splits, mass_weights};
pub(crate) use crate::order::{extremes, kth_largest, least_at, pick_within, places_within};
pub(crate) use crate::precision::round_values;
pub(crate) use crate::product::encode as product_encode;
pub(crate) use crate::scan::tail_weight;
pub(crate) use crate::sketch::quantise_keys;

use crate::element::Element;
use crate::exp::exp;
use crate::score::Rows;
use crate::softmax::add_lanes;
use crate::{ProductTables, ProductView, QueryGroup, TILE, lanes};

pub(crate) fn prepare_queries(group: &mut QueryGroup) {
    group.quantise();
}

pub(crate) fn product_tables(
    tables: &mut ProductTables,
    group: &QueryGroup,
    product: ProductView<'_>,
    centre: &[f32],
) {
    tables.fill(group, product, centre);
}

pub(crate) fn scores<E: Element>(query: &[f32], rows: Rows<'_, E>, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        if let Some(key) = rows.get(i) {
            *out = score(query, key);
        }
    }
}

fn score<E: Element>(query: &[f32], key: &[E]) -> f32 {
    let mut acc = [0.0f32; TILE];
    for block in 0..query.len().div_ceil(TILE) {
        let (q, k) = (lanes::load(query, block), lanes::load(key, block));
        for l in 0..TILE {
            acc[l] = q[l].mul_add(k[l], acc[l]);
        }
    }
    lanes::tree(acc)
}

pub(crate) fn exp_weights(scores: &[f32], scale: f32, max_score: f32, weights: &mut [f32]) -> f32 {
    let mut sums = [0.0f32; TILE];
    for (scores, weights) in scores.chunks(TILE).zip(weights.chunks_mut(TILE)) {
        for (score, weight) in scores.iter().zip(&mut *weights) {
            *weight = exp(scale * (score - max_score));
        }
        add_lanes(&mut sums, weights);
    }
    lanes::tree(sums)
}

pub(crate) fn weighted_sums<E: Element, const N: usize>(
    weights: [&[f32]; N],
    rows: Rows<'_, E>,
    out: [&mut [f32]; N],
) {
    for (weights, out) in weights.iter().zip(out) {
        for (i, &weight) in weights.iter().enumerate() {
            if let Some(row) = rows.get(i) {
                for (out, &value) in out.iter_mut().zip(row) {
                    *out = weight.mul_add(value.widen(), *out);
                }
            }
        }
    }
}
