use serde::Serialize;
use sha2::{Digest, Sha256};

/// Sixteen hexadecimal digits of the SHA-256 of a value's JSON: two values with the same are the same.
///
/// # Errors
///
/// If the value has no JSON.
pub fn fingerprint(value: &impl Serialize) -> serde_json::Result<String> {
    let digest = Sha256::digest(serde_json::to_vec(value)?);
    Ok(digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_of_the_json() {
        // echo -n '[1,2]' | sha256sum
        assert_eq!(fingerprint(&[1, 2]).expect("JSON"), "49a64717d5d4cb19");
        assert_ne!(fingerprint(&"a").ok(), fingerprint(&"b").ok());
    }
}
