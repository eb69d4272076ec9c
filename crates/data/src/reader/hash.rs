//! A hash of everything that passes through a reader.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// SHA-256 of the bytes read so far.
pub(super) struct HashReader<R> {
    input: R,
    hash: Sha256,
}

impl<R: Read> HashReader<R> {
    /// Continues a hash.
    pub(super) fn new(input: R, hash: Sha256) -> Self {
        Self { input, hash }
    }

    pub(super) fn finish(self) -> [u8; 32] {
        self.hash.finalize().into()
    }
}

impl<R: Read> Read for HashReader<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(bytes)?;
        self.hash.update(&bytes[..read]);
        Ok(read)
    }
}
