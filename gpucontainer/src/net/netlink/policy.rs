//! rtnetlink: which packets look into which table of routes.

use super::Batch;
use super::route::LOOPBACK;

const RTM_NEWROUTE: u16 = 24;
const RTM_NEWRULE: u16 = 32;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const FR_ACT_TO_TBL: u8 = 1;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_HOST: u8 = 254;
const RTN_LOCAL: u8 = 2;

fn family(ipv6: bool) -> u8 {
    if ipv6 { AF_INET6 } else { AF_INET }
}

impl Batch {
    /// What has the mark looks into the table of that number first.
    pub(crate) fn new_rule_for_mark(&mut self, ipv6: bool, mark: u32, table: u32) {
        // struct fib_rule_hdr: family, bits of destination and source, service, table, two reserved, action, flags.
        let body = [family(ipv6), 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
        let what = format!("RTM_NEWRULE(mark {mark:#x})");
        self.message(what, (RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL), &body, |batch| {
            batch.word(FRA_FWMARK, mark);
            batch.word(FRA_FWMASK, u32::MAX);
            batch.word(FRA_TABLE, table);
        });
    }

    /// In the table of that number every address is the loopback device's own.
    pub(crate) fn new_local_route_for_all(&mut self, ipv6: bool, table: u32) {
        // struct rtmsg: family, bits of destination and source, service, table, origin, scope, type, flags.
        let body = [family(ipv6), 0, 0, 0, 0, RTPROT_STATIC, RT_SCOPE_HOST, RTN_LOCAL, 0, 0, 0, 0];
        let what = format!("RTM_NEWROUTE(local, table {table:#x})");
        self.message(what, (RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL), &body, |batch| {
            batch.word(RTA_OIF, LOOPBACK);
            batch.word(RTA_TABLE, table);
        });
    }
}
