//! Bytes that users send to be stored: in pieces, and never more than the hash that they are named
//! by and the size of a chunk allow.

use futures::{Stream, StreamExt};
use longtake_common::ids::Hash;
use longtake_common::model::CHUNK_BYTES;
use std::pin::pin;
use tonic::Status;

/// Puts pieces together. The first names the hash of all of them, which is compared.
pub(crate) async fn received(
    pieces: impl Stream<Item = Result<(String, Vec<u8>), Status>>,
) -> Result<Vec<u8>, Status> {
    let mut pieces = pin!(pieces);
    let (mut wanted, mut bytes) = (None, Vec::new());
    while let Some(piece) = pieces.next().await {
        let (hash, data) = piece?;
        if wanted.is_none() {
            wanted = Some(parse_hash(&hash)?);
        }
        if (bytes.len() + data.len()) as u64 > CHUNK_BYTES {
            return Err(Status::invalid_argument(format!(
                "more than {CHUNK_BYTES} bytes were sent to be stored as one: send smaller parts"
            )));
        }
        bytes.extend_from_slice(&data);
    }
    if wanted != Some(Hash::of(&bytes)) {
        return Err(Status::invalid_argument(
            "the bytes that were sent are not those that their hash names: send them again",
        ));
    }
    Ok(bytes)
}

/// A hash as a user has sent it.
pub(crate) fn parse_hash(text: &str) -> Result<Hash, Status> {
    text.parse()
        .map_err(|error| Status::invalid_argument(format!("cannot tell what is meant: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;

    async fn send(pieces: &[(&str, usize)]) -> Result<usize, String> {
        let pieces = pieces
            .iter()
            .map(|(hash, size)| Ok(((*hash).to_owned(), vec![0; *size])));
        let bytes = received(stream::iter(pieces)).await;
        bytes
            .map(|bytes| bytes.len())
            .map_err(|status| status.message().to_owned())
    }

    #[tokio::test]
    async fn only_what_the_hash_names_is_taken() {
        let hash = Hash::of(&[0; 5]).to_string();
        assert_eq!(send(&[(&hash, 2), ("", 3)]).await, Ok(5));
        for (pieces, part) in [
            (&[(&*hash, 4)][..], "are not those"),
            (&[], "are not those"),
            (&[("../x", 5)], "cannot tell what is meant"),
            (&[(&*hash, CHUNK_BYTES as usize), ("", 1)], "smaller parts"),
        ] {
            let error = send(pieces).await.expect_err(part);
            assert!(error.contains(part), "{error}");
        }
    }
}
