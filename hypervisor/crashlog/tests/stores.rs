//! Tests of ERST on a store with the registers of QEMU's `acpi-erst`, and on hostile tables and registers.

use std::collections::BTreeMap;

use crashlog::{
    cper,
    erst::{Access, Buffer, Error, Erst, Place, Register},
    piece::{Identity, Piece, pieces},
    report::{Report, Store},
};
use proptest::prelude::*;

const ACTION: u64 = 0x1000;
const VALUE: u64 = 0x1008;
const BUFFER: u64 = 0x10_0000;
const BUFFER_BYTES: usize = 1024;
/// The value that a store of QEMU's wants with EXECUTE.
const MAGIC: u64 = 0x9C;

/// One instruction: action, instruction, register, value, mask.
fn entry(action: u8, instruction: u8, register: u64, value: u64, mask: u64) -> Vec<u8> {
    let mut bytes = vec![action, instruction, 0, 0, 0, 64, 0, 4];
    for number in [register, value, mask] {
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

fn table(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut table = vec![0; 48];
    table[44..48].copy_from_slice(&(entries.len() as u32).to_le_bytes());
    table.extend(entries.concat());
    table
}

fn usual() -> Vec<u8> {
    const READ: u8 = 0;
    const WRITE: u8 = 2;
    const WRITE_VALUE: u8 = 3;
    let mut entries = Vec::new();
    for action in [0u8, 1, 2, 3, 4, 5, 6, 7, 9, 13, 14] {
        match action {
            4 | 9 => entries.push(entry(action, WRITE, VALUE, 0, u64::MAX)),
            5 => entries.push(entry(action, WRITE_VALUE, VALUE, MAGIC, 0xFF)),
            _ => {}
        }
        entries.push(entry(action, WRITE_VALUE, ACTION, action.into(), 0xFF));
        if matches!(action, 6 | 7 | 13 | 14) {
            entries.push(entry(action, READ, VALUE, 0, u64::MAX));
        }
    }
    table(&entries)
}

#[derive(Default)]
struct Device {
    value: u64,
    operation: Option<u64>,
    id: u64,
    status: u64,
    busy: u32,
    buffer: Vec<u8>,
    records: BTreeMap<u64, Vec<u8>>,
    most: usize,
    stalled_us: u64,
}

impl Device {
    fn new(most: usize) -> Self {
        Self {
            buffer: vec![0; BUFFER_BYTES],
            most,
            ..Self::default()
        }
    }

    fn execute(&mut self) -> u64 {
        self.busy = 3;
        match self.operation {
            Some(0) => {
                let id = u64::from_le_bytes(self.buffer[96..104].try_into().unwrap());
                let len = u32::from_le_bytes(self.buffer[20..24].try_into().unwrap()) as usize;
                if !self.records.contains_key(&id) && self.records.len() == self.most {
                    return 1;
                }
                self.records.insert(id, self.buffer[..len].to_vec());
                0
            }
            Some(1) => match self.records.get(&self.id) {
                Some(record) => {
                    self.buffer[..record.len()].copy_from_slice(record);
                    0
                }
                None => 5,
            },
            Some(2) => self.records.remove(&self.id).map_or(5, |_| 0),
            _ => 3,
        }
    }
}

impl Access for Device {
    fn read(&mut self, register: Register) -> u64 {
        assert_eq!(register.place, Place::Memory(VALUE));
        self.value
    }

    fn write(&mut self, register: Register, value: u64) {
        if register.place == Place::Memory(VALUE) {
            self.value = value;
            return;
        }
        match value {
            0..=2 => self.operation = Some(value),
            3 => self.operation = None,
            5 if self.value == MAGIC => self.status = self.execute(),
            6 => {
                self.value = u64::from(self.busy > 0);
                self.busy = self.busy.saturating_sub(1);
            }
            7 => self.value = self.status,
            9 => self.id = self.value,
            13 => self.value = BUFFER,
            14 => self.value = BUFFER_BYTES as u64,
            _ => {}
        }
    }

    fn stall(&mut self, us: u64) {
        self.stalled_us += us;
    }

    fn put(&mut self, bytes: &[u8]) {
        self.buffer[..bytes.len()].copy_from_slice(bytes);
    }

    fn get(&mut self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.buffer[..bytes.len()]);
    }
}

const OF: Identity = Identity {
    crashes: 1,
    unix: 2,
    id: 3,
    total: 0,
};

fn keep(erst: &Erst, device: &mut Device, text: &[u8]) -> Result<(), Error> {
    let of = Identity {
        total: text.len() as u32,
        ..OF
    };
    let mut record = [0; BUFFER_BYTES];
    for (id, piece) in (1..).zip(pieces(of, text, BUFFER_BYTES - cper::OVERHEAD)) {
        let len = cper::encode(id, &mut record, |body| piece.encode(body)).unwrap();
        erst.write(id, &record[..len], BUFFER_BYTES as u64, device)?;
    }
    Ok(())
}

fn found(erst: &Erst, device: &mut Device) -> Option<Report> {
    let mut pieces = Vec::new();
    for id in 1.. {
        let mut record = [0; BUFFER_BYTES];
        if erst.read(id, &mut record, device).is_err() {
            break;
        }
        pieces.push(cper::decode(id, &record).unwrap().to_vec());
    }
    Report::newest(pieces.iter().map(|piece| (Store::Erst, piece.as_slice())))
}

fn text(lines: usize) -> String {
    let lines: Vec<_> = (0..lines).map(|i| format!("crash: line={i}")).collect();
    lines.join("\n")
}

#[test]
fn a_report_is_kept_found_and_cleared() {
    let erst = Erst::parse(&usual()).unwrap();
    let mut device = Device::new(32);
    let buffer = erst.buffer(&mut device);
    assert_eq!(
        buffer,
        Some(Buffer {
            pa: BUFFER,
            bytes: BUFFER_BYTES as u64
        })
    );
    assert_eq!(found(&erst, &mut device), None);
    keep(&erst, &mut device, text(200).as_bytes()).unwrap();
    assert!(device.records.len() > 1, "it takes several records");
    let report = found(&erst, &mut device).unwrap();
    assert!(report.is_complete());
    assert_eq!(report.lines, text(200).lines().collect::<Vec<_>>());
    for id in 1..=device.records.len() as u64 {
        erst.clear(id, &mut device).unwrap();
    }
    assert_eq!(found(&erst, &mut device), None);
    assert_eq!(erst.clear(1, &mut device), Err(Error::NoRecord));
}

#[test]
fn a_store_that_is_full_keeps_the_beginning() {
    let erst = Erst::parse(&usual()).unwrap();
    let mut device = Device::new(2);
    assert_eq!(
        keep(&erst, &mut device, text(200).as_bytes()),
        Err(Error::Full)
    );
    let report = found(&erst, &mut device).unwrap();
    assert!(!report.is_complete());
    assert_eq!(report.lines[0], "crash: line=0");
    let last = report.lines.last().unwrap();
    assert_eq!(*last, format!("[missing: {} bytes]", report.missing));
}

#[test]
fn a_store_that_stays_busy_is_given_up() {
    // CHECK_BUSY reads the register that EXECUTE has just written.
    let entries: Vec<_> = [0u8, 1, 5, 6, 7, 9, 13, 14]
        .map(|action| match action {
            6 => entry(action, 0, VALUE, 0, 1),
            _ => entry(action, 3, VALUE, 1, 1),
        })
        .into();
    let erst = Erst::parse(&table(&entries)).unwrap();
    let mut device = Device::new(1);
    assert_eq!(erst.clear(1, &mut device), Err(Error::Busy));
    assert!((1_000_000..10_000_000).contains(&device.stalled_us));
}

#[test]
fn instructions_that_never_end_are_given_up() {
    const GOTO: u8 = 15;
    let entries: Vec<_> = [0u8, 5, 6, 7, 13, 14]
        .map(|action| entry(action, GOTO, VALUE, 0, 1))
        .into();
    let erst = Erst::parse(&table(&entries)).unwrap();
    assert_eq!(
        erst.write(1, &[], 10, &mut Device::new(1)),
        Err(Error::Instructions)
    );
    // An entry whose register can't be used is no problem until it is executed.
    let mut bad = usual();
    bad[48 + 4] = 7;
    let erst = Erst::parse(&bad).unwrap();
    assert_eq!(
        erst.write(1, &[], 10, &mut Device::new(1)),
        Err(Error::Instructions)
    );
}

/// Registers that answer anything, and count what is asked of them.
struct Hostile {
    answers: Vec<u64>,
    asked: usize,
    stalled_us: u64,
}

impl Access for Hostile {
    fn read(&mut self, register: Register) -> u64 {
        assert!([1, 2, 4, 8].contains(&register.width));
        self.asked += 1;
        self.answers[self.asked % self.answers.len()]
    }
    fn write(&mut self, _: Register, _: u64) {
        self.asked += 1;
    }
    fn stall(&mut self, us: u64) {
        self.stalled_us += us;
    }
    fn put(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= BUFFER_BYTES);
    }
    fn get(&mut self, _: &mut [u8]) {}
}

fn any_entry() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![0u64..4, any::<u64>()];
    (
        0u8..18,
        0u8..20,
        any::<[u8; 6]>(),
        [word.clone(), word.clone(), word],
    )
        .prop_map(|(action, instruction, flags, words)| {
            let [flag, space, bits, shift, size, _] = flags;
            let mut bytes = vec![
                action,
                instruction,
                flag,
                0,
                space % 3,
                bits,
                shift,
                size % 6,
            ];
            for word in words {
                bytes.extend(word.to_le_bytes());
            }
            bytes
        })
}

proptest! {
    #[test]
    fn any_table_and_any_registers_are_survived_in_bounded_time(
        entries in prop::collection::vec(any_entry(), 0..60),
        answers in prop::collection::vec(prop_oneof![0u64..4, any::<u64>()], 1..20),
        cut in any::<u16>(),
    ) {
        let mut complete: Vec<_> = [0u8, 1, 2, 5, 6, 7, 13, 14].map(|action| entry(action, 0, VALUE, 0, u64::MAX)).into();
        complete.extend(entries);
        let table = table(&complete);
        let _ = Erst::parse(&table[..usize::from(cut) % table.len()]);
        let erst = Erst::parse(&table).unwrap();
        let mut hostile = Hostile { answers, asked: 0, stalled_us: 0 };
        if let Some(buffer) = erst.buffer(&mut hostile) {
            prop_assert!(buffer.pa.checked_add(buffer.bytes).is_some());
        }
        let _ = erst.write(1, &[0; 300], BUFFER_BYTES as u64, &mut hostile);
        let _ = erst.read(1, &mut [0; 300], &mut hostile);
        let _ = erst.clear(1, &mut hostile);
    }

    #[test]
    fn any_record_is_survived(mut record in prop::collection::vec(any::<u8>(), 0..400), is_ours in any::<bool>()) {
        if is_ours && record.len() > 104 {
            record[..4].copy_from_slice(b"CPER");
            record[64..80].copy_from_slice(&cper::CREATOR);
            record[96..104].copy_from_slice(&7u64.to_le_bytes());
        }
        if let Some(piece) = cper::decode(7, &record) {
            prop_assert!(piece.len() <= record.len());
            let _ = Piece::decode(piece);
        }
    }
}
