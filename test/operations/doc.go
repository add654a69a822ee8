// Package operations creates the transcripts of docs/operations.md: the built dpsd meets each
// failure of the page on a separate gateway, and the test compares the output of its commands and
// its journal with the page. "make operations" writes the page.
//
// A gateway is a process in its own user, mount, UTS and network namespaces: /etc, /var/lib and
// /run contain only the files of the test, the network is the loopback interface, and dpsd-sim
// replaces DPS under the real name and ports. The test changes nothing on the machine and needs no
// privileges.
package operations
