//! The TDs of a configuration on a machine that can't run any. They are listed with the reason.

use alloc::{format, string::String, vec::Vec};

use super::{
    failure::{Code, Failure},
    pci::TdPci,
    seam::ExitStats,
    td::{
        Excerpt, Pages, Registers, TdBuilt, TdEnded, TdLine, TdNow, TdPort, TdReclaim, TdReport,
        TdShrunk, TdState, TdVcpu, Tds, Unanswered,
    },
};

/// Describes the file that a TD starts from, for people.
#[must_use]
pub fn started_from(config: &config::Td) -> String {
    match (config.image_file(), &config.kernel) {
        (Some(image), _) => image.into(),
        (None, kernel) => format!(
            "{}, by the host's own firmware",
            kernel.as_deref().unwrap_or_default()
        ),
    }
}

/// Describes a PCI function of which nothing is known.
#[must_use]
pub fn unknown(pci: &config::Pci) -> TdPci {
    TdPci {
        counts: None,
        device: format!("{}", pci.device),
        address: None,
        kind: None,
        owner: None,
    }
}

/// Returns the failure for a number that no TD has.
#[must_use]
pub fn no_such_td(id: u32) -> Failure {
    Code::NoSuchTd.because(format!("there is no TD {id}; \"td list\" lists them"))
}

/// TDs that can't run.
#[derive(Debug)]
pub struct Absent<'a> {
    /// The TDs in the configuration.
    pub config: &'a [config::Td],
    /// A sentence that says why none of them can run.
    pub why: String,
}

impl Absent<'_> {
    fn line(&self, id: u32, config: &config::Td) -> TdLine {
        TdLine {
            id,
            name: config.name.clone(),
            state: TdState::Created,
            hkid: None,
            vcpus: config.vcpus,
            private_bytes: 0,
            memory_bytes: config.memory,
            problem: Some(self.why.clone()),
        }
    }

    fn all(&self) -> impl Iterator<Item = (u32, &config::Td)> {
        (1..).zip(self.config)
    }

    fn no<T>(&self) -> Result<T, Failure> {
        Err(Code::Unavailable.because(self.why.clone()))
    }
}

impl Tds for Absent<'_> {
    fn names(&self) -> Vec<String> {
        self.all().map(|(_, td)| td.name.clone()).collect()
    }

    fn list(&self) -> Vec<TdLine> {
        self.all().map(|(id, td)| self.line(id, td)).collect()
    }

    fn show(&self, id: u32) -> Result<TdReport, Failure> {
        let (_, config) = self
            .all()
            .find(|(number, _)| *number == id)
            .ok_or_else(|| no_such_td(id))?;
        let vcpu = |index| TdVcpu {
            index,
            ..TdVcpu::default()
        };
        Ok(TdReport {
            line: self.line(id, config),
            image: started_from(config),
            autostart: config.autostart,
            control: config.control,
            debug: config.debug,
            no_rbp_mod: config.no_rbp_mod(),
            shares: config.shares,
            cap: config.cap,
            pages: Pages::default(),
            made_whole: 0,
            mrtd: None,
            pci: config.pci.iter().map(unknown).collect(),
            devices: Vec::new(),
            devices_helped_us: 0,
            cpus: (0..config.vcpus).map(vcpu).collect(),
            built: None,
            ended: None,
            reclaim: None,
            pending: Vec::new(),
            shutdown: None,
            unanswered: Unanswered::default(),
        })
    }

    fn create(&self, _: u32) -> Result<TdBuilt, Failure> {
        self.no()
    }

    fn start(&self, _: u32) -> Result<TdNow, Failure> {
        self.no()
    }

    fn pause(&self, _: u32) -> Result<TdNow, Failure> {
        self.no()
    }

    fn resume(&self, _: u32) -> Result<TdNow, Failure> {
        self.no()
    }

    fn terminate(&self, _: u32) -> Result<TdEnded, Failure> {
        self.no()
    }

    fn destroy(&self, _: u32, _: bool) -> Result<TdEnded, Failure> {
        self.no()
    }

    fn retry(&self, _: u32) -> Result<TdEnded, Failure> {
        self.no()
    }

    fn reset(&self, _: u32) -> Result<TdNow, Failure> {
        self.no()
    }

    fn shrink(&self, _: u32, _: u64) -> Result<TdShrunk, Failure> {
        self.no()
    }

    fn output(&self, _: u32, _: TdPort, _: u64, _: &mut [u8]) -> Result<Excerpt, Failure> {
        self.no()
    }

    fn type_byte(&self, _: u32, _: TdPort, _: u8) -> bool {
        false
    }

    fn exits(&self, _: u32) -> Result<Vec<ExitStats>, Failure> {
        Ok(Vec::new())
    }

    fn registers(&self, _: u32, _: u16) -> Result<Registers, Failure> {
        self.no()
    }

    fn memory(&self, _: u32, _: u64, _: &mut [u8]) -> Result<(), Failure> {
        self.no()
    }

    fn reclaims(&self) -> Vec<TdReclaim> {
        Vec::new()
    }
}
