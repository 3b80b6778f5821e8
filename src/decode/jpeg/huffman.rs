//! Huffman codes and the bits they are written in (ITU-T T.81, annexes C and F.2.2).

/// Codes up to this long are found by one look into a table; longer ones are rare.
const AHEAD_BITS: u32 = 10;

/// A symbol that was read: so many zeros, then a number of so many bits.
#[derive(Clone, Copy)]
struct Symbol(u32);

impl Symbol {
    /// No code begins with these bits, or a longer one than the table holds.
    const NONE: Self = Self(0);

    fn new(code_bits: u32, value: u8) -> Self {
        let (run, size) = (u32::from(value >> 4), u32::from(value & 15));
        Self((code_bits + size) | (code_bits << 8) | (size << 16) | (run << 24))
    }

    /// Length of code and number together.
    #[inline(always)]
    fn total_bits(self) -> u32 {
        self.0 & 0xff
    }

    #[inline(always)]
    fn code_bits(self) -> u32 {
        (self.0 >> 8) & 0xff
    }

    #[inline(always)]
    fn size(self) -> u32 {
        (self.0 >> 16) & 0xff
    }

    #[inline(always)]
    fn run(self) -> usize {
        (self.0 >> 24) as usize
    }
}

/// The codes of one table.
pub(super) struct Table {
    ahead: Box<[Symbol; 1 << AHEAD_BITS]>,
    /// For each length above [`AHEAD_BITS`]: the end of its codes as 16 bits, and what turns a code
    /// into the place of its value.
    ends: [u32; 17],
    offsets: [i32; 17],
    values: Vec<u8>,
}

impl Table {
    /// The table whose codes of 1 to 16 bits are as many as `counts` says and stand for `values` in
    /// turn; `None` if such codes do not exist.
    pub(super) fn new(counts: &[u8; 16], values: &[u8]) -> Option<Self> {
        let mut table = Self {
            ahead: Box::new([Symbol::NONE; 1 << AHEAD_BITS]),
            ends: [0; 17],
            offsets: [0; 17],
            values: values.to_vec(),
        };
        let (mut code, mut place) = (0_u32, 0_usize);
        for (length, &count) in (1_u32..).zip(counts) {
            let of_length = values.get(place..place + usize::from(count))?;
            table.offsets[length as usize] = place as i32 - code as i32;
            for &value in of_length {
                if length <= AHEAD_BITS {
                    let first = (code << (AHEAD_BITS - length)) as usize;
                    let same = table.ahead.get_mut(first..first + (1 << (AHEAD_BITS - length)))?;
                    same.fill(Symbol::new(length, value));
                }
                code += 1;
            }
            place += of_length.len();
            if code > 1 << length {
                return None;
            }
            table.ends[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Some(table)
    }

    /// The symbol at the top of `bits`.
    #[inline(always)]
    fn look(&self, bits: u64) -> Option<Symbol> {
        let symbol = self.ahead[(bits >> (64 - AHEAD_BITS)) as usize];
        if symbol.total_bits() != 0 { Some(symbol) } else { self.look_further(bits) }
    }

    #[cold]
    fn look_further(&self, bits: u64) -> Option<Symbol> {
        let bits = (bits >> 48) as u32;
        let length = (AHEAD_BITS + 1..=16).find(|&length| bits < self.ends[length as usize])?;
        let code = (bits >> (16 - length)) as i32;
        let place = usize::try_from(code + self.offsets[length as usize]).ok()?;
        Some(Symbol::new(length, *self.values.get(place)?))
    }
}

/// Where reading stands in entropy-coded data whose stuffed zeros are taken out.
#[derive(Clone, Copy)]
pub(super) struct Bits<'a> {
    data: &'a [u8],
    /// The next byte to take.
    at: usize,
    /// What was taken and not read yet, from the top; zeros or the bits that follow come after.
    held: u64,
    n_held: u32,
}

impl<'a> Bits<'a> {
    /// Before the byte at `at`.
    pub(super) fn new(data: &'a [u8], at: usize) -> Self {
        Self { data, at, held: 0, n_held: 0 }
    }

    /// Whether all of the bytes before `end` were read, but for the bits that fill the last one.
    pub(super) fn is_at(&self, end: usize) -> bool {
        (8 * self.at - self.n_held as usize).div_ceil(8) == end
    }

    /// Whether more was read than there is before `end`.
    pub(super) fn is_beyond(&self, end: usize) -> bool {
        8 * self.at - self.n_held as usize > 8 * end
    }

    /// Holds at least 56 bits; beyond the end of the data they are zeros.
    #[inline(always)]
    fn fill(&mut self) {
        let next = match self.data.get(self.at..).and_then(<[u8]>::first_chunk) {
            Some(&bytes) => u64::from_be_bytes(bytes),
            None => last_bytes(self.data, self.at),
        };
        self.held |= next >> self.n_held;
        self.at += ((63 - self.n_held) >> 3) as usize;
        self.n_held |= 56;
    }

    /// Reads a symbol and its number; what is `None` is no code of `table`.
    #[inline(always)]
    fn read(&mut self, table: &Table) -> Option<(Symbol, i32)> {
        // A code has 16 bits at most, and its number 15.
        if self.n_held < 31 {
            self.fill();
        }
        let symbol = table.look(self.held)?;
        let number = extend(self.held << symbol.code_bits(), symbol.size());
        self.held <<= symbol.total_bits();
        self.n_held -= symbol.total_bits();
        Some((symbol, number))
    }
}

/// The bytes from `at` on, where they are fewer than eight, and zeros.
#[cold]
fn last_bytes(data: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    let rest = data.get(at..).unwrap_or_default();
    bytes[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(bytes)
}

/// The codes of a component and its factors, which stand in zigzag order.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a> {
    pub(super) dc: &'a Table,
    pub(super) ac: &'a Table,
    pub(super) quantisation: &'a [i32; 64],
}

/// Reads a block's coefficients into `block`, which is zero before: in natural order, times their
/// factors. Returns how many of the zigzag's places may hold something else than zero.
#[inline(never)]
pub(super) fn read_block(
    bits: &mut Bits<'_>,
    tables: Tables<'_>,
    previous_dc: &mut i32,
    block: &mut [i32; 64],
) -> Option<usize> {
    let Tables { dc, ac, quantisation } = tables;
    // A copy stays in registers.
    let mut here = *bits;
    let (_, difference) = here.read(dc)?;
    *previous_dc = previous_dc.wrapping_add(difference);
    block[0] = previous_dc.wrapping_mul(quantisation[0]);
    let mut place = 1;
    let mut length = 1;
    while place < 64 {
        let (symbol, number) = here.read(ac)?;
        if symbol.size() == 0 {
            match symbol.run() {
                15 => place += 16,
                // The end: what is left is zero.
                0 => break,
                _ => return None,
            }
            continue;
        }
        place += symbol.run();
        let factor = quantisation.get(place)?;
        block[usize::from(NATURAL[place]) & 63] = number.wrapping_mul(*factor);
        place += 1;
        length = place;
    }
    *bits = here;
    // Sixteen zeros that leave the block are no code of a sound file.
    (place <= 64).then_some(length)
}

/// The number that the top `size` bits, 0 to 15, stand for (T.81, F.2.2.1): those that begin with 0
/// are negative.
#[inline(always)]
fn extend(bits: u64, size: u32) -> i32 {
    let magnitude = (bits >> 1 >> (63 - size)) as i32;
    let is_negative = !(bits as i64) >> 63;
    magnitude + (is_negative as i32 & (1 - (1 << size)))
}

/// Where each place of the zigzag lies in a block's rows (T.81, figure 5).
pub(super) const NATURAL: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One code of each length but 16, which has two: 0, 10, 110, ...; values of run and size.
    const COUNTS: [u8; 16] = [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];
    const VALUES: [u8; 16] = [
        0x01, 0x00, 0x02, 0xf0, 0x13, 0x05, 0x24, 0x0f, 0x36, 0x07, 0x48, 0x09, 0xea, 0x0b, 0xfc,
        0x0d,
    ];

    /// The bits of code `index`, then `size` bits of `number`, as T.81 writes them.
    fn write(bits: &mut Vec<u8>, index: usize, number: i32, size: u32) {
        bits.extend(std::iter::repeat_n(1, index).chain([0]));
        let number = if number < 0 { number + (1 << size) - 1 } else { number };
        bits.extend((0..size).rev().map(|bit| ((number >> bit) & 1) as u8));
    }

    /// Bytes of `bits`, ones to fill the last.
    fn pack(mut bits: Vec<u8>) -> Vec<u8> {
        bits.resize(bits.len().next_multiple_of(8), 1);
        bits.chunks(8).map(|byte| byte.iter().fold(0, |sum, bit| (sum << 1) | bit)).collect()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(numbers in prop::collection::vec((0..16_usize, any::<i16>()), 0..200)) {
            let table = Table::new(&COUNTS, &VALUES).unwrap();
            let mut bits = vec![];
            let expected: Vec<_> = numbers
                .into_iter()
                .map(|(index, number)| {
                    let size = u32::from(VALUES[index] & 15);
                    // A number of this size has its highest bit set, or is 0 with size 0.
                    let top = (1 << size) >> 1;
                    let magnitude = i32::from(number).abs() % top.max(1) + top;
                    let number = if number < 0 { -magnitude } else { magnitude };
                    write(&mut bits, index, number, size);
                    (usize::from(VALUES[index] >> 4), size, number)
                })
                .collect();
            let data = pack(bits);
            let mut bits = Bits::new(&data, 0);
            for (run, size, number) in expected {
                let (symbol, read) = bits.read(&table).unwrap();
                prop_assert_eq!((symbol.run(), symbol.size(), read), (run, size, number));
            }
            prop_assert!(bits.is_at(data.len()));
        }
    }

    #[test]
    fn codes_that_do_not_exist_are_refused() {
        let mut too_many = COUNTS;
        too_many[0] = 3;
        assert!(Table::new(&too_many, &[1; 18]).is_none());
        assert!(Table::new(&COUNTS, &VALUES[..15]).is_none(), "a value is missing");
        // Sixteen ones begin no code of this table.
        let table = Table::new(&COUNTS, &VALUES).unwrap();
        assert!(Bits::new(&[0xff; 8], 0).read(&table).is_none());
    }

    #[test]
    fn a_block_ends_at_its_64_coefficients() {
        let (dc, ac) =
            (Table::new(&COUNTS, &VALUES).unwrap(), Table::new(&COUNTS, &VALUES).unwrap());
        let read = |codes: &[(usize, i32, u32)]| {
            let mut bits = vec![];
            codes.iter().for_each(|&(index, number, size)| write(&mut bits, index, number, size));
            let (mut previous_dc, mut block) = (10, [0; 64]);
            let quantisation = &std::array::from_fn(|place| 1 + place as i32);
            let tables = Tables { dc: &dc, ac: &ac, quantisation };
            let data = pack(bits);
            let length = read_block(&mut Bits::new(&data, 0), tables, &mut previous_dc, &mut block);
            (length, block)
        };
        // The difference 1; 16 zeros; a zero, then 5 with three bits; the end.
        let (length, block) = read(&[(0, 1, 1), (3, 0, 0), (4, 5, 3), (1, 0, 0)]);
        assert_eq!(length, Some(19));
        assert_eq!((block[0], block[usize::from(NATURAL[18])]), (11, 5 * 19));
        assert_eq!(block.iter().filter(|&&number| number != 0).count(), 2);
        // Four times sixteen zeros are one more than a block has.
        assert_eq!(read(&[(0, 1, 1), (3, 0, 0), (3, 0, 0), (3, 0, 0), (3, 0, 0)]).0, None);
        // So are 48 zeros, 14 more, and a number behind them.
        let zeros = [(0, 1, 1), (3, 0, 0), (3, 0, 0), (3, 0, 0)];
        assert_eq!(read(&[&zeros[..], &[(12, 513, 10)]].concat()).0, Some(64));
        assert_eq!(read(&[&zeros[..], &[(14, 2049, 12)]].concat()).0, None);
    }
}
