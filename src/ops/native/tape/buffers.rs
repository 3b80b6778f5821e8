//! The buffers of a tape: lent to a value or a gradient for as long as it is wanted, then lent again.

use crate::ops::element::Element;

/// Buffers that nobody wants now. A step lends the same lengths in the same order as the one before,
/// so that after the first one none is made.
#[derive(Default)]
pub(super) struct Buffers<E> {
    spare: Vec<Vec<E>>,
}

impl<E: Element> Buffers<E> {
    /// A buffer of `length` elements with whatever was left in it.
    pub(super) fn lend(&mut self, length: usize) -> Vec<E> {
        // Of this very length: a longer one would be missing where its length is asked for. The last
        // to come back is the likeliest to lie in a cache.
        match self.spare.iter().rposition(|buffer| buffer.len() == length) {
            Some(index) => self.spare.swap_remove(index),
            None => vec![E::default(); length],
        }
    }

    /// Takes a buffer back.
    pub(super) fn take_back(&mut self, buffer: Vec<E>) {
        if !buffer.is_empty() {
            self.spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_lent_again_to_whoever_asks_for_its_length() {
        let mut buffers = Buffers::<f32>::default();
        let (short, long) = (buffers.lend(3), buffers.lend(5));
        let places = [short.as_ptr(), long.as_ptr()];
        buffers.take_back(long);
        buffers.take_back(short);
        buffers.take_back(vec![]);
        assert_eq!(buffers.lend(4).len(), 4);
        let again = [3, 5].map(|length| buffers.lend(length));
        assert_eq!([again[0].as_ptr(), again[1].as_ptr()], places);
        assert!(buffers.spare.is_empty());
    }
}
