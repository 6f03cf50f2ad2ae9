//! The TD VMCS: its fields, and the position of each in its page.
//!
//! On hardware the layout of that page is implementation-specific. Here every field occupies one 64-bit word.

/// The encoding of a VMCS field (Intel SDM, appendix B of volume 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field(pub u32);

/// The first word and the number of words of each group of fields; a group is width (bits 14:13) and type (11:10).
const GROUPS: [(u16, u16); 16] = [
    // 16 bit: control, read-only, guest, host.
    (0, 8),
    (8, 0),
    (8, 16),
    (24, 8),
    // 64 bit.
    (32, 56),
    (88, 4),
    (92, 20),
    (112, 4),
    // 32 bit.
    (116, 28),
    (144, 8),
    (152, 28),
    (180, 2),
    // Natural width.
    (182, 10),
    (192, 8),
    (200, 28),
    (228, 16),
];

#[expect(missing_docs, reason = "each is the field of that name in the SDM")]
impl Field {
    pub const VPID: Self = Self(0x0000);
    pub const POSTED_INT_VECTOR: Self = Self(0x0002);
    pub const ES_SELECTOR: Self = Self(0x0800);
    pub const CS_SELECTOR: Self = Self(0x0802);
    pub const SS_SELECTOR: Self = Self(0x0804);
    pub const DS_SELECTOR: Self = Self(0x0806);
    pub const FS_SELECTOR: Self = Self(0x0808);
    pub const GS_SELECTOR: Self = Self(0x080A);
    pub const LDTR_SELECTOR: Self = Self(0x080C);
    pub const TR_SELECTOR: Self = Self(0x080E);
    pub const INTERRUPT_STATUS: Self = Self(0x0810);
    pub const IO_BITMAP_A: Self = Self(0x2000);
    pub const IO_BITMAP_B: Self = Self(0x2002);
    pub const MSR_BITMAP: Self = Self(0x2004);
    pub const PML_ADDRESS: Self = Self(0x200E);
    pub const EXIT_MSR_STORE: Self = Self(0x2006);
    pub const EXIT_MSR_LOAD: Self = Self(0x2008);
    pub const ENTRY_MSR_LOAD: Self = Self(0x200A);
    pub const EXECUTIVE_VMCS: Self = Self(0x200C);
    pub const TSC_OFFSET: Self = Self(0x2010);
    pub const VIRTUAL_APIC: Self = Self(0x2012);
    pub const APIC_ACCESS: Self = Self(0x2014);
    pub const POSTED_INT_DESCRIPTOR: Self = Self(0x2016);
    pub const EPTP: Self = Self(0x201A);
    pub const EPTP_LIST: Self = Self(0x2024);
    pub const VMREAD_BITMAP: Self = Self(0x2026);
    pub const VMWRITE_BITMAP: Self = Self(0x2028);
    pub const VE_INFO_ADDRESS: Self = Self(0x202A);
    pub const ENCLS_EXITING: Self = Self(0x202E);
    pub const TSC_MULTIPLIER: Self = Self(0x2032);
    pub const PROC_BASED3: Self = Self(0x2034);
    pub const ENCLV_EXITING: Self = Self(0x2036);
    pub const PASID_LOW: Self = Self(0x2038);
    pub const PASID_HIGH: Self = Self(0x203A);
    pub const SHARED_EPTP: Self = Self(0x203C);
    pub const PCONFIG_EXITING: Self = Self(0x203E);
    pub const SPEC_CTRL_MASK: Self = Self(0x204A);
    pub const GUEST_PHYSICAL_ADDRESS: Self = Self(0x2400);
    pub const VMCS_LINK: Self = Self(0x2800);
    pub const DEBUGCTL: Self = Self(0x2802);
    pub const PAT: Self = Self(0x2804);
    pub const EFER: Self = Self(0x2806);
    pub const PERF_GLOBAL_CTRL: Self = Self(0x2808);
    pub const PDPTE0: Self = Self(0x280A);
    pub const PDPTE1: Self = Self(0x280C);
    pub const PDPTE2: Self = Self(0x280E);
    pub const PDPTE3: Self = Self(0x2810);
    pub const PIN_BASED: Self = Self(0x4000);
    pub const PROC_BASED: Self = Self(0x4002);
    pub const EXCEPTION_BITMAP: Self = Self(0x4004);
    pub const EXIT_CONTROLS: Self = Self(0x400C);
    pub const ENTRY_CONTROLS: Self = Self(0x4012);
    pub const ENTRY_INT_INFO: Self = Self(0x4016);
    pub const ENTRY_INT_ERROR: Self = Self(0x4018);
    pub const ENTRY_INSTRUCTION_LENGTH: Self = Self(0x401A);
    pub const PROC_BASED2: Self = Self(0x401E);
    pub const NOTIFY_WINDOW: Self = Self(0x4024);
    pub const HKID: Self = Self(0x4026);
    pub const EXIT_REASON: Self = Self(0x4402);
    pub const EXIT_INT_INFO: Self = Self(0x4404);
    pub const EXIT_INT_ERROR: Self = Self(0x4406);
    pub const IDT_VECTORING: Self = Self(0x4408);
    pub const IDT_VECTORING_ERROR: Self = Self(0x440A);
    pub const EXIT_INSTRUCTION_LENGTH: Self = Self(0x440C);
    pub const EXIT_INSTRUCTION_INFO: Self = Self(0x440E);
    pub const ES_LIMIT: Self = Self(0x4800);
    pub const CS_LIMIT: Self = Self(0x4802);
    pub const SS_LIMIT: Self = Self(0x4804);
    pub const DS_LIMIT: Self = Self(0x4806);
    pub const FS_LIMIT: Self = Self(0x4808);
    pub const GS_LIMIT: Self = Self(0x480A);
    pub const LDTR_LIMIT: Self = Self(0x480C);
    pub const TR_LIMIT: Self = Self(0x480E);
    pub const GDTR_LIMIT: Self = Self(0x4810);
    pub const IDTR_LIMIT: Self = Self(0x4812);
    pub const ES_ACCESS: Self = Self(0x4814);
    pub const CS_ACCESS: Self = Self(0x4816);
    pub const SS_ACCESS: Self = Self(0x4818);
    pub const DS_ACCESS: Self = Self(0x481A);
    pub const FS_ACCESS: Self = Self(0x481C);
    pub const GS_ACCESS: Self = Self(0x481E);
    pub const LDTR_ACCESS: Self = Self(0x4820);
    pub const TR_ACCESS: Self = Self(0x4822);
    pub const INTERRUPTIBILITY: Self = Self(0x4824);
    pub const ACTIVITY: Self = Self(0x4826);
    pub const SYSENTER_CS: Self = Self(0x482A);
    pub const CR0_MASK: Self = Self(0x6000);
    pub const CR4_MASK: Self = Self(0x6002);
    pub const CR0_SHADOW: Self = Self(0x6004);
    pub const CR4_SHADOW: Self = Self(0x6006);
    pub const EXIT_QUALIFICATION: Self = Self(0x6400);
    pub const GUEST_LINEAR_ADDRESS: Self = Self(0x640A);
    pub const CR0: Self = Self(0x6800);
    pub const CR3: Self = Self(0x6802);
    pub const CR4: Self = Self(0x6804);
    pub const ES_BASE: Self = Self(0x6806);
    pub const CS_BASE: Self = Self(0x6808);
    pub const SS_BASE: Self = Self(0x680A);
    pub const DS_BASE: Self = Self(0x680C);
    pub const FS_BASE: Self = Self(0x680E);
    pub const GS_BASE: Self = Self(0x6810);
    pub const LDTR_BASE: Self = Self(0x6812);
    pub const TR_BASE: Self = Self(0x6814);
    pub const GDTR_BASE: Self = Self(0x6816);
    pub const IDTR_BASE: Self = Self(0x6818);
    pub const DR7: Self = Self(0x681A);
    pub const RSP: Self = Self(0x681C);
    pub const RIP: Self = Self(0x681E);
    pub const RFLAGS: Self = Self(0x6820);
    pub const PENDING_DEBUG: Self = Self(0x6822);
    pub const SYSENTER_ESP: Self = Self(0x6824);
    pub const SYSENTER_EIP: Self = Self(0x6826);
}

impl Field {
    /// Returns the number of the field's word in the VMCS page; `None` for an encoding without a field.
    pub const fn word(self) -> Option<usize> {
        if self.0 & !0x6FFE != 0 {
            return None;
        }
        let group = (self.0 >> 13 & 3) * 4 + (self.0 >> 10 & 3);
        let (first, count) = GROUPS[group as usize];
        let index = (self.0 >> 1 & 0x1FF) as u16;
        if index < count {
            Some((first + index) as usize)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_do_not_overlap_and_fit_into_a_page() {
        for pair in GROUPS.windows(2) {
            assert_eq!(pair[0].0 + pair[0].1, pair[1].0);
        }
        assert!(GROUPS[15].0 + GROUPS[15].1 <= 512);
    }

    #[test]
    fn the_high_half_of_a_field_and_reserved_bits_are_no_field() {
        assert!(Field::EPTP.word().is_some());
        assert_eq!(Field(Field::EPTP.0 + 1).word(), None);
        assert_eq!(Field(0x8000 | Field::EPTP.0).word(), None);
    }
}
