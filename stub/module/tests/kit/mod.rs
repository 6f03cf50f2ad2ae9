//! Fixtures of the module's tests and benchmarks: an initialised server, and TDs in it.
#![allow(dead_code, reason = "not every test needs all of it")]

use seam::abi::{Leaf, Operand};
use stub_module::hooks::Hooks;
use stub_module::host::{Config, Processor, Server, TdmrPlan};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Base address of the TDMR of [`Builder`].
pub const BASE: u64 = 4 << 30;
/// Size of the TDMR in bytes.
pub const SIZE: u64 = 1 << 30;
/// The module's own HKID.
pub const GLOBAL_HKID: u32 = 32;
/// Address at which [`Builder::initialize`] puts TD_PARAMS.
pub const TD_PARAMS: u64 = 1 << 20;
/// TDVPR and TDCX pages of a vCPU.
pub const TDVPS_PAGES: u64 = 6;
/// TDCX pages of a TD.
const TDCX_PAGES: u64 = 6;

/// An initialised server with two packages. Processors 0 and 2 are in different packages.
pub struct Builder {
    pub server: Server,
}

/// A TD with keys and a TDCS.
pub struct Td {
    pub tdr: u64,
    pub tdcx: Vec<u64>,
    pub hkid: u32,
}

impl Builder {
    /// Creates the server on which the recordings were made, with a TDMR of 1 GiB.
    pub fn new(hooks: Hooks) -> Self {
        Self::sized(Config::default(), SIZE, hooks)
    }

    /// Creates another server, with a TDMR of `size` bytes.
    pub fn sized(config: Config, size: u64, hooks: Hooks) -> Self {
        let server = Server::with_hooks(config, hooks);
        let tdmr = TdmrPlan { base: BASE, size };
        server.bring_up(tdmr, GLOBAL_HKID).unwrap();
        Self { server }
    }

    pub fn cpu(&self, lp: u32) -> Processor<'_> {
        self.server.processor(lp).unwrap()
    }

    /// Creates an uninitialised TD with this HKID, in the MiB of the TDMR that belongs to it.
    pub fn td(&self, hkid: u32) -> Td {
        let cpu = self.cpu(0);
        let tdr = BASE + (u64::from(hkid) << 20);
        let tdcx: Vec<_> = (1..=TDCX_PAGES).map(|page| tdr + page * PAGE).collect();
        cpu.leaf(
            Leaf::MngCreate,
            [(Operand::RCX, tdr), (Operand::RDX, hkid.into())],
        )
        .unwrap();
        for lp in [0, 2] {
            self.cpu(lp)
                .leaf(Leaf::MngKeyConfig, [(Operand::RCX, tdr)])
                .unwrap();
        }
        for page in &tdcx {
            cpu.leaf(Leaf::MngAddcx, [(Operand::RCX, *page), (Operand::RDX, tdr)])
                .unwrap();
        }
        Td { tdr, tdcx, hkid }
    }

    /// Calls TDH.MNG.INIT with minimal TD_PARAMS: XFAM with x87, SSE and AVX, 4 vCPUs, 4-level EPT, 2.5 GHz.
    pub fn initialize(&self, td: &Td) {
        let params = TD_PARAMS;
        let memory = self.server.machine().memory();
        memory.write(params + 8, &0xe7u64.to_le_bytes());
        memory.write(params + 16, &4u16.to_le_bytes());
        memory.write(params + 24, &0x1eu64.to_le_bytes());
        memory.write(params + 40, &100u16.to_le_bytes());
        self.cpu(0)
            .leaf(
                Leaf::MngInit,
                [(Operand::RCX, td.tdr), (Operand::RDX, params)],
            )
            .unwrap();
    }

    /// Releases a TD's HKID. Its vCPUs must be flushed.
    pub fn tear_down(&self, td: &Td) {
        let cpu = self.cpu(0);
        let operand = [(Operand::RCX, td.tdr)];
        cpu.leaf(Leaf::MngVpflushdone, operand).unwrap();
        for lp in [0, 2] {
            self.cpu(lp).leaf(Leaf::PhymemCacheWb, []).unwrap();
        }
        cpu.leaf(Leaf::MngKeyFreeid, operand).unwrap();
    }
}
