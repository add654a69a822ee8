// Package network notices that this machine reaches the network in another way than
// before: a route, an address or a resolver file has changed.
//
// It asks the kernel which address it would send from, by connect(2) on a UDP socket,
// which sends nothing. dpsd's sandbox denies netlink and /proc/net, which would say more.
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

// elsewhere are addresses that no machine has (RFC 5737, RFC 3849): the kernel chooses the
// default route towards them.
var elsewhere = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// files are what a name is resolved by: resolv.conf(5), hosts(5), nsswitch.conf(5).
var files = []string{"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"}

// enough is as much as is read of a file, in bytes.
const enough = 64 << 10

// State is a fingerprint of the address that the kernel would send from, towards the
// default routes and each of the destinations, and of the resolver files' contents. It
// differs from an earlier one of the same destinations when one of these has changed. A
// route that changes without the address that it is used from is not seen.
func State(destinations []netip.Addr) string {
	sum := sha256.New()
	for _, to := range slices.Concat(elsewhere, destinations) {
		fmt.Fprintln(sum, to, source(to))
	}
	for _, name := range files {
		fmt.Fprintln(sum, name)
		if file, err := input.Open(name); err == nil {
			text, _ := io.ReadAll(io.LimitReader(file, enough)) // what cannot be read is like nothing
			_, _ = sum.Write(text)                              // it never fails, hash.Hash
			_ = file.Close()
		}
	}
	return string(sum.Sum(nil))
}

// source is the address that the kernel would send from, or why it would not send.
func source(to netip.Addr) string {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9))) // discard
	if err != nil {
		return err.Error()
	}
	defer func() { _ = c.Close() }()                               // nothing was written
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().String() // the port is another one each time
}
