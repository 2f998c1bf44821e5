//! Control groups, version 1, 2 and both at once: limits, statistics, events, devices.
