//! A ring of bytes.

/// The newest bytes that were not taken yet, at most `N`.
#[derive(Debug)]
pub struct Ring<const N: usize> {
    bytes: [u8; N],
    head: usize,
    len: usize,
}

impl<const N: usize> Ring<N> {
    /// Creates an empty ring. It is all zeroes, so a static one takes no space in an image.
    pub const fn new() -> Self {
        Self {
            bytes: [0; N],
            head: 0,
            len: 0,
        }
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub const fn free(&self) -> usize {
        N - self.len
    }

    /// Adds as many of `bytes` as fit, and returns their number.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let fit = bytes.len().min(self.free());
        let tail = (self.head + self.len) % N;
        let first = fit.min(N - tail);
        self.bytes[tail..tail + first].copy_from_slice(&bytes[..first]);
        self.bytes[..fit - first].copy_from_slice(&bytes[first..fit]);
        self.len += fit;
        fit
    }

    /// Adds `bytes` before the oldest byte if they fit.
    pub fn push_front(&mut self, bytes: &[u8]) {
        if bytes.len() > self.free() {
            return;
        }
        self.head = (self.head + N - bytes.len()) % N;
        self.len += bytes.len();
        for (i, byte) in bytes.iter().enumerate() {
            self.bytes[(self.head + i) % N] = *byte;
        }
    }

    /// Takes the oldest byte.
    pub fn pop(&mut self) -> Option<u8> {
        if self.is_empty() {
            return None;
        }
        let byte = self.bytes[self.head];
        self.skip(1);
        Some(byte)
    }

    /// Drops the oldest bytes; `count` must not exceed [`Self::len`].
    pub fn skip(&mut self, count: usize) {
        self.head = (self.head + count) % N;
        self.len -= count;
    }
}

#[cfg(test)]
mod tests {
    use super::Ring;

    #[test]
    fn bytes_come_out_in_order_across_the_end() {
        let mut ring = Ring::<5>::new();
        assert_eq!(ring.push(b"abc"), 3);
        assert_eq!((ring.pop(), ring.pop()), (Some(b'a'), Some(b'b')));
        assert_eq!(ring.push(b"defgh"), 4);
        assert_eq!((ring.len(), ring.free()), (5, 0));
        ring.skip(1);
        let all: [_; 5] = core::array::from_fn(|_| ring.pop());
        assert_eq!(all, [Some(b'd'), Some(b'e'), Some(b'f'), Some(b'g'), None]);
    }
}
