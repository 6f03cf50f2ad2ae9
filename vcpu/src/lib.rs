//! One virtual CPU of a TD: enter, exit, serve the guest.
#![no_std]
