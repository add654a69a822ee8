// Package network detects changes in how this machine reaches the network: a changed route,
// address or resolver file.
//
// It asks the kernel for the source address by calling connect(2) on a UDP socket, which
// sends nothing. Netlink and /proc/net would provide more information, but dpsd's sandbox
// denies them.
package network

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"

	"github.com/dpsd-project/dpsd/input"
)

// elsewhere are addresses for documentation, which no machine has (RFC 5737, RFC 3849): the
// kernel chooses the default route to them.
var elsewhere = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// files configure name resolution: resolv.conf(5), hosts(5), nsswitch.conf(5).
var files = []string{"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"}

// enough is the maximum number of bytes that are read from a file.
const enough = 64 << 10

// State returns a fingerprint of the source addresses for the default routes and each of
// the destinations, and of the contents of the resolver files. If one of these changes, the
// fingerprint for the same destinations changes. State does not detect a change of a route
// that keeps its source address.
func State(destinations []netip.Addr) string {
	sum := sha256.New()
	for _, to := range slices.Concat(elsewhere, destinations) {
		fmt.Fprintln(sum, to, source(to))
	}
	for _, name := range files {
		fmt.Fprintln(sum, name)
		if file, err := input.Open(name); err == nil {
			text, _ := io.ReadAll(io.LimitReader(file, enough)) // an unreadable file counts as empty
			_, _ = sum.Write(text)                              // never fails, see hash.Hash
			_ = file.Close()
		}
	}
	return string(sum.Sum(nil))
}

// source returns the kernel's source address for a destination, or the text of its error.
func source(to netip.Addr) string {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9))) // discard
	if err != nil {
		return err.Error()
	}
	defer func() { _ = c.Close() }()                               // no data was written
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().String() // the port differs each time
}
