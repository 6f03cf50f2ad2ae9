//! From UEFI to the hypervisor's first line, and from SIPI to an AP's.
#![no_std]
