//! The calling thread as one of rayon's.

/// Makes the calling thread a member of rayon's global pool, which then starts one thread fewer. Call it early in `main`, before anything uses the
/// pool; a pool that exists already is left as it is.
///
/// Burn's products and Hira's steps start on the thread that asks for them. From outside of the pool there is one thread more than there are
/// cores, and the system may wake a worker on the core that the caller keeps busy: on two cores dense attention over 32,768 keys took
/// 1,350 us from outside and 930 us as a member.
pub(crate) fn join_pool() {
    // It fails only where the pool was built before.
    let _exists = rayon::ThreadPoolBuilder::new()
        .use_current_thread()
        .build_global();
}
