//! The console's report of TDX.

use alloc::{format, string::ToString, vec::Vec};

use console::host::{
    Hex,
    tdx::{BringUpStep, Cmr, Hkids, LeftOut, Microcode, Module, Tdmr, Tdx, TdxMemory, TdxState},
};
use host::{
    platform::shutdown::Shutdown,
    tdx::report::{self, Report},
};
use mm::tdmr::Plan;
use seam::{abi::names, module::Info};

use super::advisories;

/// Converts the bring-up's report to the console's.
pub fn tdx(report: &Report) -> Tdx {
    let steps = report.steps.iter().map(|step| BringUpStep {
        name: step.name.into(),
        calls: step.calls,
        us: step.us,
        error: step.error.clone(),
    });
    Tdx {
        state: match report.state {
            report::TdxState::Unavailable => TdxState::Unavailable,
            report::TdxState::Ready => TdxState::Ready,
            report::TdxState::Failed => TdxState::Failed,
        },
        reasons: report.reasons.clone(),
        dma: super::iommu::dma(),
        hkids: report.key_ids.map(|k| Hkids {
            first: k.first_private(),
            total: k.private,
            used: 0,
            quarantined: 0,
        }),
        microcode: Vec::new(),
        module: report.module.as_ref().map(module),
        cmrs: report.module.as_ref().map(cmrs).unwrap_or_default(),
        memory: report.memory.as_ref().map(memory),
        bring_up: steps.collect(),
        bring_up_us: report.us,
    }
}

/// Groups CPUs by the revision of their microcode, in the order of the first CPU of each group.
pub fn microcode(cpus: impl Iterator<Item = (u32, Option<u32>)>) -> Vec<Microcode> {
    let mut groups: Vec<Microcode> = Vec::new();
    for (cpu, revision) in cpus {
        let revision = revision.map(|revision| Hex(revision.into()));
        match groups.iter_mut().find(|group| group.revision == revision) {
            Some(group) => group.cpus.push(cpu),
            None => groups.push(Microcode {
                revision,
                cpus: Vec::from([cpu]),
            }),
        }
    }
    groups
}

/// Updates a report of the bring-up if the module has shut down since.
pub fn correct(tdx: &mut Tdx, shutdown: &Shutdown) {
    if shutdown.is_down() {
        tdx.state = TdxState::Failed;
        tdx.reasons = shutdown.reasons();
    }
}

/// Converts the CMRs.
fn cmrs(info: &Info) -> Vec<Cmr> {
    let all = info.cmrs.iter();
    all.map(|c| Cmr {
        base: Hex(c.base),
        size: c.size,
    })
    .collect()
}

/// Converts the plan of the module's memory.
fn memory(plan: &Plan) -> TdxMemory {
    TdxMemory {
        private_bytes: plan.private.bytes(),
        pamt_bytes: plan.pamt_bytes(),
        tdmrs: plan
            .tdmrs
            .iter()
            .map(|tdmr| Tdmr {
                base: Hex(tdmr.span.start),
                size: tdmr.span.bytes(),
                numa_node: tdmr.node,
                reserved_areas: tdmr.reserved.len(),
                pamt_bytes: tdmr.pamt.iter().map(|span| span.bytes()).sum(),
            })
            .collect(),
        left_out: plan
            .left_out
            .iter()
            .map(|left| LeftOut {
                start: Hex(left.span.start),
                end: Hex(left.span.end),
                why: format!("{}", left.why),
            })
            .collect(),
    }
}

/// Returns the module's version, features and limits.
fn module(info: &Info) -> Module {
    Module {
        major: info.major_version,
        minor: info.minor_version,
        update: info.update_version,
        build_number: info.build_num,
        build_date: info.build_date,
        vendor: Hex(info.vendor_id.into()),
        features0: Hex(info.tdx_features0.bits()),
        features: names(info.tdx_features0)
            .map(|feature| feature.to_string())
            .collect(),
        advisories: advisories::of((info.major_version, info.minor_version, info.update_version))
            .collect(),
        max_tdmrs: info.max_tdmrs,
        max_reserved_per_tdmr: info.max_reserved_per_tdmr,
        max_vcpus_per_td: info.max_vcpus_per_td,
        pamt_4k_entry_bytes: info.pamt_4k_entry_size,
        pamt_2m_entry_bytes: info.pamt_2m_entry_size,
        pamt_1g_entry_bytes: info.pamt_1g_entry_size,
    }
}

#[cfg(test)]
mod tests {
    use seam::abi::Features0;

    use super::*;

    #[test]
    fn equal_microcode_is_one_entry() {
        let found = [
            (0, Some(7)),
            (1, Some(7)),
            (2, Some(6)),
            (3, None),
            (4, Some(7)),
        ];
        let groups = microcode(found.into_iter());
        let groups: Vec<_> = groups.into_iter().map(|g| (g.revision, g.cpus)).collect();
        assert_eq!(
            groups,
            [
                (Some(Hex(7)), [0, 1, 4].into()),
                (Some(Hex(6)), [2].into()),
                (None, [3].into())
            ]
        );
    }

    #[test]
    fn features_have_names_or_numbers() {
        let info = Info {
            tdx_features0: Features0::NO_RBP_MOD | Features0::from_bits_retain(1 << 63),
            ..Info::default()
        };
        assert_eq!(module(&info).features, ["NO_RBP_MOD", "bit 63"]);
    }
}
