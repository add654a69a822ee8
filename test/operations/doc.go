// Package operations makes the transcripts of docs/operations.md: the built dpsd
// meets each trouble of the page on a gateway of its own, and what its commands
// and its journal then say is held against the page. "make operations" writes it.
//
// A gateway is a process in name spaces of its own, of users, mounts, host name
// and network: /etc, /var/lib and /run are empty but for what a test puts there,
// the network is the loopback, and DPS is dpsd-sim under the name and the ports
// of the real one. Nothing of the machine is touched, and no privilege is needed.
package operations
