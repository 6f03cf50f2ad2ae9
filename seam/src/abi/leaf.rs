//! The SEAMCALL leafs: numbers, highest versions, names.

macro_rules! leafs {
    ($($name:ident = $number:literal, $version:literal, $text:literal;)*) => {
        /// A host-side leaf of the TDX module (RAX bits 15:0).
        ///
        /// Source: TDX Module ABI 1.5, "Host-side (SEAMCALL) interface functions".
        #[repr(u16)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Leaf {
            $(#[doc = $text] $name = $number,)*
        }

        impl Leaf {
            /// All leafs in ascending order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Returns the leaf with this number.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Returns the highest version (RAX bits 23:16) that a module 1.5 accepts.
            pub const fn max_version(self) -> u8 {
                match self {
                    $(Self::$name => $version,)*
                }
            }

            /// Returns the specification's name, including `TDH.`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

leafs! {
    VpEnter = 0, 0, "TDH.VP.ENTER";
    MngAddcx = 1, 0, "TDH.MNG.ADDCX";
    MemPageAdd = 2, 0, "TDH.MEM.PAGE.ADD";
    MemSeptAdd = 3, 1, "TDH.MEM.SEPT.ADD";
    VpAddcx = 4, 0, "TDH.VP.ADDCX";
    MemPageRelocate = 5, 0, "TDH.MEM.PAGE.RELOCATE";
    MemPageAug = 6, 0, "TDH.MEM.PAGE.AUG";
    MemRangeBlock = 7, 0, "TDH.MEM.RANGE.BLOCK";
    MngKeyConfig = 8, 0, "TDH.MNG.KEY.CONFIG";
    MngCreate = 9, 0, "TDH.MNG.CREATE";
    VpCreate = 10, 0, "TDH.VP.CREATE";
    MngRd = 11, 1, "TDH.MNG.RD";
    MemRd = 12, 0, "TDH.MEM.RD";
    MngWr = 13, 0, "TDH.MNG.WR";
    MemWr = 14, 0, "TDH.MEM.WR";
    MemPageDemote = 15, 0, "TDH.MEM.PAGE.DEMOTE";
    MrExtend = 16, 0, "TDH.MR.EXTEND";
    MrFinalize = 17, 0, "TDH.MR.FINALIZE";
    VpFlush = 18, 0, "TDH.VP.FLUSH";
    MngVpflushdone = 19, 0, "TDH.MNG.VPFLUSHDONE";
    MngKeyFreeid = 20, 0, "TDH.MNG.KEY.FREEID";
    MngInit = 21, 0, "TDH.MNG.INIT";
    VpInit = 22, 1, "TDH.VP.INIT";
    MemPagePromote = 23, 1, "TDH.MEM.PAGE.PROMOTE";
    PhymemPageRdmd = 24, 0, "TDH.PHYMEM.PAGE.RDMD";
    MemSeptRd = 25, 0, "TDH.MEM.SEPT.RD";
    VpRd = 26, 1, "TDH.VP.RD";
    MngKeyReclaimid = 27, 0, "TDH.MNG.KEY.RECLAIMID";
    PhymemPageReclaim = 28, 0, "TDH.PHYMEM.PAGE.RECLAIM";
    MemPageRemove = 29, 0, "TDH.MEM.PAGE.REMOVE";
    MemSeptRemove = 30, 1, "TDH.MEM.SEPT.REMOVE";
    SysKeyConfig = 31, 0, "TDH.SYS.KEY.CONFIG";
    SysInfo = 32, 0, "TDH.SYS.INFO";
    SysInit = 33, 1, "TDH.SYS.INIT";
    SysRd = 34, 0, "TDH.SYS.RD";
    SysLpInit = 35, 0, "TDH.SYS.LP.INIT";
    SysTdmrInit = 36, 0, "TDH.SYS.TDMR.INIT";
    SysRdall = 37, 0, "TDH.SYS.RDALL";
    MemTrack = 38, 0, "TDH.MEM.TRACK";
    MemRangeUnblock = 39, 0, "TDH.MEM.RANGE.UNBLOCK";
    PhymemCacheWb = 40, 0, "TDH.PHYMEM.CACHE.WB";
    PhymemPageWbinvd = 41, 0, "TDH.PHYMEM.PAGE.WBINVD";
    MemSeptWr = 42, 0, "TDH.MEM.SEPT.WR";
    VpWr = 43, 0, "TDH.VP.WR";
    SysLpShutdown = 44, 0, "TDH.SYS.LP.SHUTDOWN";
    SysConfig = 45, 0, "TDH.SYS.CONFIG";
    ServtdBind = 48, 0, "TDH.SERVTD.BIND";
    ServtdPrebind = 49, 0, "TDH.SERVTD.PREBIND";
    SysShutdown = 52, 0, "TDH.SYS.SHUTDOWN";
    SysUpdate = 53, 1, "TDH.SYS.UPDATE";
    PhymemPamtAdd = 58, 0, "TDH.PHYMEM.PAMT.ADD";
    PhymemPamtRemove = 59, 0, "TDH.PHYMEM.PAMT.REMOVE";
    ExportAbort = 64, 0, "TDH.EXPORT.ABORT";
    ExportBlockw = 65, 0, "TDH.EXPORT.BLOCKW";
    ExportRestore = 66, 0, "TDH.EXPORT.RESTORE";
    ExportMem = 68, 0, "TDH.EXPORT.MEM";
    ExportPause = 70, 0, "TDH.EXPORT.PAUSE";
    ExportTrack = 71, 0, "TDH.EXPORT.TRACK";
    ExportStateImmutable = 72, 0, "TDH.EXPORT.STATE.IMMUTABLE";
    ExportStateTd = 73, 0, "TDH.EXPORT.STATE.TD";
    ExportStateVp = 74, 0, "TDH.EXPORT.STATE.VP";
    ExportUnblockw = 75, 0, "TDH.EXPORT.UNBLOCKW";
    ImportAbort = 80, 0, "TDH.IMPORT.ABORT";
    ImportEnd = 81, 0, "TDH.IMPORT.END";
    ImportCommit = 82, 0, "TDH.IMPORT.COMMIT";
    ImportMem = 83, 0, "TDH.IMPORT.MEM";
    ImportTrack = 84, 0, "TDH.IMPORT.TRACK";
    ImportStateImmutable = 85, 0, "TDH.IMPORT.STATE.IMMUTABLE";
    ImportStateTd = 86, 0, "TDH.IMPORT.STATE.TD";
    ImportStateVp = 87, 0, "TDH.IMPORT.STATE.VP";
    MigStreamCreate = 96, 0, "TDH.MIG.STREAM.CREATE";

}

impl Leaf {
    /// Returns the leaf number, RAX bits 15:0.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// Returns RAX for version 0 of the leaf.
    pub const fn rax(self) -> u64 {
        self as u64
    }

    /// Returns RAX for this version of the leaf.
    pub const fn rax_version(self, version: u8) -> u64 {
        self as u64 | (version as u64) << 16
    }
}

/// A leaf of the P-SEAMLDR, selected by RAX bit 63.
///
/// Source: Intel P-SEAMLDR specification, "SEAMLDR interface functions".
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SeamldrLeaf {
    /// SEAMLDR.INFO: fills the 256-byte SEAMLDR_INFO at RCX.
    Info = 1 << 63,
    /// SEAMLDR.INSTALL: called on every LP; the last call loads the module.
    Install = 1 << 63 | 1,
    /// SEAMLDR.SHUTDOWN.
    Shutdown = 1 << 63 | 2,
    /// SEAMLDR.SEAMINFO.
    SeamInfo = 1 << 63 | 3,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_leafs_map_both_ways() {
        for leaf in Leaf::ALL {
            assert_eq!(Leaf::from_number(leaf.number()), Some(*leaf));
        }
        assert_eq!(Leaf::from_number(46), None);
        assert_eq!(Leaf::MemSeptRemove.rax_version(1), 0x1_001e);
    }
}
