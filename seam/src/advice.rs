//! Advice for the operator: the meaning of a status, and what to do about it.
//!
//! The meaning depends on the code alone. The remedy also depends on the detail: an operand that comes from a TD's
//! configuration can be corrected by the operator, any other is a bug of Seamark.
//!
//! Source: TDX Module ABI 1.5, "Function completion status codes", and the checks of release 1.5.01.

use core::fmt;

use crate::abi::{Operand, Status};
use crate::call::Fault;
use crate::detail::Detail;

/// The meaning of a status or fault and its remedy. Printed as sentences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advice {
    /// The event, as a sentence.
    pub meaning: &'static str,
    /// The subject of the status, if its detail names one.
    pub about: Detail,
    /// The remedy.
    pub remedy: Remedy,
}

/// The operator's remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing: the status is not a failure.
    Nothing,
    /// Wait and retry.
    TryAgain,
    /// Retry the termination of the TD.
    EndAgain,
    /// Change a firmware setting, or update the firmware.
    Firmware,
    /// Load another version of the TDX module.
    UpdateModule,
    /// Restart the machine.
    Restart,
    /// Change the TD's configuration.
    Configuration,
    /// Free an HKID, or configure more of them.
    Hkids,
    /// Destroy the TD.
    Destroy,
    /// Examine the guest.
    Guest,
    /// Report a bug of Seamark.
    Report,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.meaning)?;
        if self.about != Detail::None {
            write!(f, " It concerns {}.", self.about)?;
        }
        write!(f, " {}", self.remedy)
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing needs to be done.",
            Self::TryAgain => "The condition is temporary: try again.",
            Self::EndAgain => "Terminate the TD again: the termination resumes where it stopped.",
            Self::Firmware => "Correct it in the firmware's setup (BIOS), or update the firmware, and restart the machine.",
            Self::UpdateModule => "Update the TDX module and its loader, which usually come with the firmware.",
            Self::Restart => "Restart the machine to use TDX again.",
            Self::Configuration => "Change the TD's configuration; `tdx` shows what the module supports.",
            Self::Hkids => "Destroy a TD that is no longer needed, or give TDX more KeyIDs in the firmware's setup.",
            Self::Destroy => "The TD can't continue: destroy it, and create it again if it is still needed.",
            Self::Guest => "The software in the TD caused it: look there.",
            Self::Report => "This is a bug in Seamark: please report it, with the console's log.",
        })
    }
}

impl Status {
    /// Returns the meaning and the remedy, or `None` for a code that module 1.5 does not have.
    pub fn advice(self) -> Option<Advice> {
        if self == Self::OPERAND_INVALID.with(Operand::RAX) {
            return Some(Advice {
                meaning: "The module does not know the function that was called, or not in that version.",
                about: Detail::None,
                remedy: Remedy::UpdateModule,
            });
        }
        let (meaning, remedy) = meaning(self.code())?;
        let about = Detail::of(self);
        let remedy = match about {
            Detail::Operand(operand) if remedy == Remedy::Report && is_td_parameter(operand) => {
                Remedy::Configuration
            }
            _ => remedy,
        };
        Some(Advice {
            meaning,
            about,
            remedy,
        })
    }
}

impl Fault {
    /// Returns the meaning and the remedy.
    pub fn advice(self) -> Advice {
        let (meaning, remedy) = match self {
            Self::NotLoaded => (
                "No TDX module is loaded: the firmware did not load one, or it shut itself down after an internal error.",
                Remedy::Firmware,
            ),
            Self::NotEnabled => (
                "SEAM is not enabled on this processor: TDX is off in the firmware's setup.",
                Remedy::Firmware,
            ),
            Self::NotVmx => (
                "The processor is not in VMX operation, or has no SEAM at all.",
                Remedy::Report,
            ),
        };
        Advice {
            meaning,
            about: Detail::None,
            remedy,
        }
    }
}

/// Returns whether an operand is a field of TD_PARAMS, which comes from a TD's configuration.
fn is_td_parameter(operand: Operand) -> bool {
    (Operand::ATTRIBUTES.0..=Operand::IA32_ARCH_CAPABILITIES_CONFIG.0).contains(&operand.0)
}

/// Returns the meaning of a code as a sentence, and the general remedy.
#[rustfmt::skip] // one line a code
fn meaning(code: Status) -> Option<(&'static str, Remedy)> {
    use Remedy::{Configuration, Destroy, EndAgain, Firmware, Guest, Hkids, Nothing, Report, Restart, TryAgain, UpdateModule};
    Some(match code {
        Status::SUCCESS => ("The call succeeded.", Nothing),
        Status::NON_RECOVERABLE_VCPU => ("A virtual processor stopped for good.", Destroy),
        Status::NON_RECOVERABLE_TD => ("The TD stopped for good, for example by a triple fault in it.", Destroy),
        Status::INTERRUPTED_RESUMABLE => ("An interrupt came in the middle of a long call, which has to be resumed.", TryAgain),
        Status::INTERRUPTED_RESTARTABLE => ("An interrupt came in the middle of a long call, which has to be made again.", TryAgain),
        Status::NON_RECOVERABLE_TD_NON_ACCESSIBLE => ("The TD stopped for good, and its memory can't be read any more.", Destroy),
        Status::INVALID_RESUMPTION => ("An interrupted call was resumed with other operands.", Report),
        Status::NON_RECOVERABLE_TD_WRONG_APIC_MODE => ("The TD stopped for good, as its local APIC was not in x2APIC mode.", Report),
        Status::CROSS_TD_FAULT => ("A call concerning another TD failed on that TD's side; the call can be repeated.", TryAgain),
        Status::CROSS_TD_TRAP => ("A call concerning another TD was done, but failed on that TD's side.", TryAgain),
        Status::NON_RECOVERABLE_TD_CORRUPTED_MD => ("The TD stopped for good: the module's data about it in memory is corrupted.", Destroy),

        Status::OPERAND_INVALID => ("The module does not accept a value that the call was given.", Report),
        Status::OPERAND_ADDR_RANGE_ERROR => ("An address is in no TDMR, or in one that is not initialised yet.", Report),
        Status::EVENT_FILTER_INVALID => ("An entry of the TD's list of performance events is malformed.", Report),
        Status::EVENT_FILTER_ORDER_INVALID => ("The TD's list of performance events is not in ascending order.", Report),

        Status::OPERAND_BUSY => ("Something that the call needs was in use by another processor for too long.", TryAgain),
        Status::PREVIOUS_TLB_EPOCH_BUSY => ("A virtual processor has not left the TD since the last round of TLB tracking.", TryAgain),
        Status::SYS_BUSY => ("The module was busy with its own initialisation or shutdown.", TryAgain),
        Status::RND_NO_ENTROPY => ("The processor's random number generator gave too little entropy.", TryAgain),
        Status::OPERAND_BUSY_HOST_PRIORITY => ("Something is kept free for the host, which asked for it first.", TryAgain),
        Status::HOST_PRIORITY_BUSY_TIMEOUT => ("The TD waited too long for something that the host had asked for first.", TryAgain),
        Status::INTERRUPTED_BUSY => ("An interrupted call found a resource of the TD in use when it resumed.", TryAgain),

        Status::PAGE_METADATA_INCORRECT => ("A page of memory is not in the state that the call demands.", Report),
        Status::PAGE_ALREADY_FREE => ("The page was free already.", Nothing),
        Status::PAGE_NOT_OWNED_BY_TD => ("A page of memory belongs to another TD.", Report),
        Status::PAGE_NOT_FREE => ("A page of memory that was to be given to the module is in use.", Report),
        Status::HPA_RANGE_NOT_FREE => ("A 2 MiB range is in use, or has its pair of PAMT pages already.", Report),
        Status::NO_PAMT_PAGE_PAIR => ("A 2 MiB range has no pair of PAMT pages to take away.", Report),
        Status::PAMT_PAGE_NOT_EMPTY => ("A pair of PAMT pages still describes pages in use.", Report),
        Status::INTERRUPTED_PAMT => ("An interrupted call needs a pair of PAMT pages to go on.", TryAgain),
        Status::MISSING_PAMT_PAGE_PAIR => ("A page was to be used in a 2 MiB range that has no pair of PAMT pages.", Report),
        Status::TD_ASSOCIATED_PAGES_EXIST => ("The TD still owns pages, so its root page can't be taken back.", EndAgain),

        Status::SYS_INIT_NOT_PENDING => ("The module was initialised before, by other software since the last start.", Restart),
        Status::SYS_LP_INIT_NOT_DONE => ("This processor has not been initialised for the module.", Report),
        Status::SYS_LP_INIT_DONE => ("This processor was initialised for the module before.", Report),
        Status::SYS_NOT_READY => ("The module is not configured yet.", Report),
        Status::SYS_SHUTDOWN => ("The module was shut down and no longer answers.", Restart),
        Status::SYS_KEY_CONFIG_NOT_PENDING => ("The module's own key is not due to be configured.", Report),
        Status::SYS_STATE_INCORRECT => ("The module is not in the state that the call demands.", Report),
        Status::SYS_INVALID_HANDOFF => ("The data that the previous module handed over does not fit this one.", Restart),
        Status::CRYPTO_SELF_TEST_FAILED => ("The module's self-test of its cryptography failed.", UpdateModule),
        Status::UPDATE_COMPATIBILITY_SENSITIVE => ("The module can't be updated while TDs are being built or migrated.", TryAgain),
        Status::SYS_INCOMPATIBLE_SIGSTRUCT => ("The module was signed for another range of versions than it can take over from.", UpdateModule),
        Status::SYS_LP_INIT_NOT_PENDING => ("Processors can't be initialised for the module any more, or not yet.", Report),
        Status::SYS_CONFIG_NOT_PENDING => ("The module can't be configured now: a processor that the firmware counted is not initialised for it, or it is configured already.", Firmware),
        Status::INCOMPATIBLE_SEAM_CAPABILITIES => ("The processor lacks a SEAM function that this module needs.", UpdateModule),

        Status::TD_FATAL => ("The TD suffered a fatal error before.", Destroy),
        Status::TD_NON_DEBUG => ("This can be read or changed in a debug TD only.", Configuration),
        Status::TDCS_NOT_ALLOCATED => ("The TD's control structure has not been given its pages.", Report),
        Status::LIFECYCLE_STATE_INCORRECT => ("The TD is not in the phase of its life that the call demands.", Report),
        Status::OP_STATE_INCORRECT => ("The TD is not in the state of operation that the call demands.", Report),
        Status::NO_VCPUS => ("The TD has no virtual processor.", Report),
        Status::TDCX_NUM_INCORRECT => ("A TD or virtual processor was given too few or too many pages for its control structure.", Report),
        Status::X2APIC_ID_NOT_UNIQUE => ("Two virtual processors of the TD were given the same x2APIC id.", Report),
        Status::INCOMPATIBLE_MRTD_CONTEXT => ("The TD's measurement was begun by another release of the module, which hashes differently.", Destroy),

        Status::VCPU_STATE_INCORRECT => ("The virtual processor is not in the state that the call demands.", Report),
        Status::VCPU_ASSOCIATED => ("The virtual processor belongs to another processor, which has to flush it first.", TryAgain),
        Status::VCPU_NOT_ASSOCIATED => ("The virtual processor belongs to no processor, so there is nothing to flush.", Nothing),
        Status::NO_VALID_VE_INFO => ("There is no virtualisation exception to report.", Guest),
        Status::MAX_VCPUS_EXCEEDED => ("The TD has as many virtual processors as it was configured for.", Configuration),
        Status::TSC_ROLLBACK => ("The TD's time would run backwards: the time stamp counter was changed after the module was initialised.", Firmware),
        Status::INTERRUPTIBILITY_BLOCKED => ("The TD's virtual processor blocks the event that was to be delivered.", Guest),
        Status::TD_VMCS_FIELD_NOT_INITIALIZED => ("A field of the virtual processor that it needs to run was not set.", Report),
        Status::TD_VMCS_FIELD_ERROR => ("A field of the virtual processor has a value with which it can't run.", Report),

        Status::KEY_GENERATION_FAILED => ("The memory controller generated no key, for lack of entropy.", TryAgain),
        Status::TD_KEYS_NOT_CONFIGURED => ("The TD's key is not configured on every package, or was taken away.", Report),
        Status::KEY_STATE_INCORRECT => ("The TD's key is not in the state that the call demands.", Report),
        Status::KEY_CONFIGURED => ("The key was configured on this package before.", Nothing),
        Status::WBCACHE_NOT_COMPLETE => ("The caches of a package still hold data of the TD.", EndAgain),
        Status::HKID_NOT_FREE => ("The HKID is in use.", Hkids),
        Status::NO_HKID_READY_TO_WBCACHE => ("No HKID waits for caches to be written back.", Nothing),
        Status::WBCACHE_RESUME_ERROR => ("The write-back of the caches can't be resumed, as none was interrupted on this package.", Report),
        Status::FLUSHVP_NOT_DONE => ("A virtual processor of the TD is still held by a processor.", EndAgain),
        Status::NUM_ACTIVATED_HKIDS_NOT_SUPPORTED => ("The firmware gives TDX more KeyIDs than the module can keep account of.", Firmware),

        Status::INCORRECT_CPUID_VALUE => ("The processor lacks a feature that the module needs, or the firmware turned it off.", Firmware),
        Status::LIMIT_CPUID_MAXVAL_SET => ("The firmware limits CPUID (IA32_MISC_ENABLE bit 22).", Firmware),
        Status::INCONSISTENT_CPUID_FIELD => ("This processor's CPUID differs from that of the one on which the module was initialised.", Firmware),
        Status::CPUID_MAX_SUBLEAVES_UNRECOGNIZED => ("CPUID reports more sub-leaves than the module knows.", UpdateModule),
        Status::CPUID_LEAF_1F_FORMAT_UNRECOGNIZED => ("CPUID describes the topology of processors in a way that the module does not know.", UpdateModule),
        Status::INVALID_WBINVD_SCOPE => ("Caches are not shared by exactly one package.", Firmware),
        Status::INVALID_PKG_ID => ("There are more packages than the module supports.", UpdateModule),
        Status::ENABLE_MONITOR_FSM_NOT_SET => ("The firmware did not enable the monitor for MONITOR and MWAIT.", Firmware),
        Status::CPUID_LEAF_NOT_SUPPORTED => ("The processor lacks a CPUID leaf that the module needs.", UpdateModule),
        Status::SMRR_NOT_LOCKED => ("The firmware did not lock its system management memory (SMRR).", Firmware),
        Status::INVALID_SMRR_CONFIGURATION => ("The firmware's system management memory (SMRR) is not one aligned range.", Firmware),
        Status::SMRR_OVERLAPS_CMR => ("The firmware's system management memory (SMRR) overlaps convertible memory.", Firmware),
        Status::SMRR_LOCK_NOT_SUPPORTED => ("The processor can't lock system management memory (SMRR).", Firmware),
        Status::SMRR_NOT_SUPPORTED => ("The processor has no system management memory range (SMRR).", Firmware),
        Status::INCONSISTENT_MSR => ("A register of this processor differs from that of the one on which the module was initialised.", Firmware),
        Status::INCORRECT_MSR_VALUE => ("A register of the processor does not have the value that the module needs.", Firmware),
        Status::SEAMREPORT_NOT_AVAILABLE => ("The processor can't make reports for attestation.", Firmware),
        Status::SEAMDB_GETREF_NOT_AVAILABLE => ("The processor has no SEAM database to read from.", Firmware),
        Status::SEAMDB_REPORT_NOT_AVAILABLE => ("The processor can't report from its SEAM database.", Firmware),
        Status::SEAMVERIFYREPORT_NOT_AVAILABLE => ("The processor can't verify reports for attestation.", Firmware),

        Status::INVALID_TDMR => ("A TDMR's base or size is not as the module demands.", Report),
        Status::NON_ORDERED_TDMR => ("TDMRs overlap or are out of order.", Report),
        Status::TDMR_OUTSIDE_CMRS => ("A TDMR covers memory that is not convertible.", Report),
        Status::TDMR_ALREADY_INITIALIZED => ("The TDMR was initialised completely before.", Nothing),
        Status::INVALID_PAMT => ("A PAMT's address or size is not as the module demands.", Report),
        Status::PAMT_OUTSIDE_CMRS => ("A PAMT lies in memory that is not convertible.", Report),
        Status::PAMT_OVERLAP => ("A PAMT overlaps another one, or memory that TDs could have.", Report),
        Status::INVALID_RESERVED_IN_TDMR => ("A reserved area of a TDMR is not as the module demands.", Report),
        Status::NON_ORDERED_RESERVED_IN_TDMR => ("Reserved areas of a TDMR overlap or are out of order.", Report),
        Status::CMR_LIST_INVALID => ("The firmware's list of convertible memory is not valid.", Firmware),

        Status::EPT_WALK_FAILED => ("The TD's secure page tables do not lead to that address at that level.", Report),
        Status::EPT_ENTRY_FREE => ("Nothing is mapped at that address of the TD.", Report),
        Status::EPT_ENTRY_NOT_FREE => ("Something is mapped at that address of the TD already.", Report),
        Status::EPT_ENTRY_NOT_PRESENT => ("No usable page is mapped at that address of the TD.", Report),
        Status::EPT_ENTRY_NOT_LEAF => ("A page table is where a page was expected in the TD.", Report),
        Status::EPT_ENTRY_LEAF => ("A page is where a page table was expected in the TD.", Report),
        Status::GPA_RANGE_NOT_BLOCKED => ("The range has to be blocked first.", Report),
        Status::GPA_RANGE_ALREADY_BLOCKED => ("The range was blocked before.", Nothing),
        Status::TLB_TRACKING_NOT_DONE => ("Processors may still hold translations of the range.", Report),
        Status::EPT_INVALID_PROMOTE_CONDITIONS => ("The small pages can't become a large one: they differ in state, or are not contiguous.", Report),
        Status::PAGE_ALREADY_ACCEPTED => ("The TD had accepted the page before.", Nothing),
        Status::PAGE_SIZE_MISMATCH => ("The TD named a page by a size other than that with which it is mapped.", Guest),
        Status::GPA_RANGE_BLOCKED => ("The range is blocked.", Report),
        Status::EPT_ENTRY_STATE_INCORRECT => ("The mapping at that address of the TD is not in the state that the call demands.", Report),
        Status::EPT_PAGE_NOT_FREE => ("A page table of the TD is not empty.", Report),
        Status::L2_SEPT_WALK_FAILED => ("The secure page tables of a nested VM do not lead to that address.", Report),
        Status::L2_SEPT_ENTRY_NOT_FREE => ("Something is mapped at that address of a nested VM already.", Report),
        Status::PAGE_ATTR_INVALID => ("The TD asked for page attributes that do not exist together.", Guest),
        Status::L2_SEPT_PAGE_NOT_PROVIDED => ("A page for the page tables of a nested VM was not given.", Report),

        Status::METADATA_FIELD_ID_INCORRECT => ("The module has no metadata field of that number.", UpdateModule),
        Status::METADATA_FIELD_NOT_WRITABLE => ("That metadata field can't be written.", Report),
        Status::METADATA_FIELD_NOT_READABLE => ("That metadata field can't be read.", Report),
        Status::METADATA_FIELD_VALUE_NOT_VALID => ("That value is not one that the metadata field can have.", Report),
        Status::METADATA_LIST_OVERFLOW => ("The list of metadata is too long for its buffer.", Report),
        Status::INVALID_METADATA_LIST_HEADER => ("The header of the list of metadata is not valid.", Report),
        Status::REQUIRED_METADATA_FIELD_MISSING => ("A field is missing from the list of metadata.", Report),
        Status::METADATA_ELEMENT_SIZE_INCORRECT => ("The size given for a metadata field is not its size.", Report),
        Status::METADATA_LAST_ELEMENT_INCORRECT => ("The list of metadata ends in the middle of a field.", Report),
        Status::METADATA_FIELD_CURRENTLY_NOT_WRITABLE => ("That metadata field can't be written in the TD's present state.", Report),
        Status::METADATA_WR_MASK_NOT_VALID => ("Those bits of the metadata field can't be written.", Report),
        Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT => ("There was no field before; the first one's number is given.", Nothing),
        Status::METADATA_FIELD_SKIP => ("The metadata field was skipped.", Nothing),
        Status::VIRTUAL_MSR_VALUE_NOT_VALID => ("The TD can't be given this value of an MSR.", Report),
        Status::METADATA_FIELD_NOT_ALLOCATED => ("The metadata field lies in memory that the TD was not given.", Report),

        Status::SERVTD_ALREADY_BOUND_FOR_TYPE => ("A service TD of that type is bound to the TD already.", Report),
        Status::SERVTD_TYPE_MISMATCH => ("The service TD is of another type than the one that was announced.", Report),
        Status::SERVTD_ATTR_MISMATCH => ("The service TD has other attributes than the one that was announced.", Report),
        Status::SERVTD_INFO_HASH_MISMATCH => ("The service TD measures differently from the one that was announced.", Report),
        Status::SERVTD_UUID_MISMATCH => ("The service TD is not the one that was bound.", Report),
        Status::SERVTD_NOT_BOUND => ("No service TD is bound to the TD there.", Report),
        Status::SERVTD_BOUND => ("A service TD is bound to the TD there.", Report),
        Status::TARGET_UUID_MISMATCH => ("The TD is not the one that the service TD meant.", Report),
        Status::TARGET_UUID_UPDATED => ("The TD that the service TD meant has a new identity.", Report),

        Status::INVALID_MBMD => ("The description of a piece of migrated state is not valid.", Report),
        Status::INCORRECT_MBMD_MAC => ("The description of a piece of migrated state is not authentic.", Destroy),
        Status::NOT_WRITE_BLOCKED => ("The page has to be blocked for writing first.", Report),
        Status::ALREADY_WRITE_BLOCKED => ("The page was blocked for writing before.", Nothing),
        Status::NOT_EXPORTED => ("The page was not exported.", Report),
        Status::MIGRATION_STREAM_STATE_INCORRECT => ("The migration stream is not in the state that the call demands.", Report),
        Status::MAX_MIGS_NUM_EXCEEDED => ("The TD has as many migration streams as the module supports.", Report),
        Status::EXPORTED_DIRTY_PAGES_REMAIN => ("Pages were written after they had been exported.", TryAgain),
        Status::MIGRATION_DECRYPTION_KEY_NOT_SET => ("The key of the migration session was not set.", Report),
        Status::TD_NOT_MIGRATABLE => ("The TD was created without the MIGRATABLE attribute.", Configuration),
        Status::PREVIOUS_EXPORT_CLEANUP_INCOMPLETE => ("The previous export of the TD has not been cleaned up.", Report),
        Status::NUM_MIGS_HIGHER_THAN_CREATED => ("More migration streams are in use than were created.", Report),
        Status::IMPORT_MISMATCH => ("What is imported does not fit what was imported before.", Destroy),
        Status::MIGRATION_EPOCH_OVERFLOW => ("The migration session has gone on for too many rounds.", Report),
        Status::MAX_EXPORTS_EXCEEDED => ("The TD was exported as often as the module supports.", Report),
        Status::INVALID_PAGE_MAC => ("The content of a migrated page is not authentic.", Destroy),
        Status::MIGRATED_IN_CURRENT_EPOCH => ("The page was migrated in this round already.", Report),
        Status::DISALLOWED_IMPORT_OVER_REMOVED => ("A page that was removed from the TD can't be imported again.", Report),
        Status::SOME_VCPUS_NOT_MIGRATED => ("Not all virtual processors of the TD were migrated.", Report),
        Status::ALL_VCPUS_IMPORTED => ("All virtual processors of the TD were imported before.", Report),
        Status::MIN_MIGS_NOT_CREATED => ("The TD has fewer migration streams than migration needs.", Report),
        Status::VCPU_ALREADY_EXPORTED => ("The virtual processor was exported before.", Report),
        Status::INVALID_MIGRATION_DECRYPTION_KEY => ("The key of the migration session is not valid.", Report),
        Status::INCOMPATIBLE_MBMD_MAC_CONTEXT => ("The TD's migration was begun by another release of the module.", Destroy),

        Status::INVALID_CPUSVN => ("The report comes from a processor with another security version.", Guest),
        Status::INVALID_REPORTMACSTRUCT => ("The report is not authentic.", Guest),

        Status::L2_EXIT_HOST_ROUTED_ASYNC => ("A nested VM was left for a reason that the host has to handle.", Nothing),
        Status::L2_EXIT_HOST_ROUTED_TDVMCALL => ("A nested VM was left with a request to the host.", Nothing),
        Status::L2_EXIT_PENDING_INTERRUPT => ("A nested VM was left, as an interrupt waits for the TD.", Nothing),
        Status::PENDING_INTERRUPT => ("A nested VM was not entered, as an interrupt waits for the TD.", Nothing),
        Status::TD_EXIT_BEFORE_L2_ENTRY => ("The TD was left before it entered a nested VM.", Nothing),
        Status::TD_EXIT_ON_L2_VM_EXIT => ("The TD was left on an exit of a nested VM.", Nothing),
        Status::TD_EXIT_ON_L2_TO_L1 => ("The TD was left on the way from a nested VM to it.", Nothing),
        Status::L2_VM_ENTRY_FAILED => ("The processor refused to enter a nested VM of the TD.", Guest),
        Status::GLA_NOT_CANONICAL => ("The TD named an address that is not canonical.", Guest),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::abi::status::NAMES;
    use std::string::ToString;

    #[test]
    fn every_code_of_the_module_has_a_meaning_and_a_remedy() {
        for (status, name) in NAMES {
            let advice = status
                .advice()
                .unwrap_or_else(|| panic!("no advice for {name}"));
            assert!(
                advice.meaning.ends_with('.') && advice.meaning.len() > 15,
                "{name}: {}",
                advice.meaning
            );
        }
        assert_eq!(Status(0xc000_ff00_0000_0000).advice(), None);
    }

    #[test]
    fn no_two_codes_mean_the_same() {
        for (i, (a, name)) in NAMES.iter().enumerate() {
            for (b, other) in &NAMES[..i] {
                assert_ne!(
                    a.advice().unwrap().meaning,
                    b.advice().unwrap().meaning,
                    "{name}, {other}"
                );
            }
        }
    }

    #[test]
    fn advice_to_do_nothing_is_for_what_is_no_failure_or_needs_none() {
        for (status, name) in NAMES {
            if status.advice().unwrap().remedy == Remedy::Nothing {
                let harmless = !status.is_error() || *status == Status::VCPU_NOT_ASSOCIATED;
                assert!(harmless, "{name}");
            }
        }
    }

    #[test]
    fn trying_again_is_advised_only_where_it_can_help() {
        for (status, name) in NAMES {
            if status.advice().unwrap().remedy == Remedy::TryAgain {
                // The next round, with another call, exports the pages that were written meanwhile.
                let can_help =
                    !status.is_non_recoverable() || *status == Status::EXPORTED_DIRTY_PAGES_REMAIN;
                assert!(can_help, "{name}");
            }
        }
    }

    #[test]
    fn a_register_is_named_with_the_setting_behind_it() {
        let text = Status::INCORRECT_MSR_VALUE
            .with_detail(0x982)
            .advice()
            .unwrap()
            .to_string();
        assert!(text.contains("MSR 0x982, IA32_TME_ACTIVATE"), "{text}");
        assert!(text.contains("TME-MT") && text.contains("BIOS"), "{text}");
        assert!(
            Status::INCONSISTENT_MSR
                .with_detail(0x1234)
                .advice()
                .unwrap()
                .to_string()
                .contains("MSR 0x1234.")
        );
    }

    #[test]
    fn a_refused_parameter_is_the_configuration_s_other_operands_are_ours() {
        let remedy = |operand| {
            Status::OPERAND_INVALID
                .with(operand)
                .advice()
                .unwrap()
                .remedy
        };
        assert_eq!(remedy(Operand::XFAM), Remedy::Configuration);
        assert_eq!(
            remedy(Operand::IA32_ARCH_CAPABILITIES_CONFIG),
            Remedy::Configuration
        );
        assert_eq!(remedy(Operand::RCX), Remedy::Report);
        let text = Status::OPERAND_INVALID
            .with(Operand::XFAM)
            .advice()
            .unwrap()
            .to_string();
        assert!(text.contains("XFAM"), "{text}");
    }

    #[test]
    fn a_module_that_lacks_a_function_is_too_old() {
        let advice = Status::OPERAND_INVALID.with(Operand::RAX).advice().unwrap();
        assert_eq!(advice.remedy, Remedy::UpdateModule);
    }

    #[test]
    fn faults_of_the_instruction_have_advice_too() {
        assert_eq!(Fault::NotLoaded.advice().remedy, Remedy::Firmware);
        assert!(Fault::NotEnabled.advice().to_string().contains("BIOS"));
    }
}
