package classify

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/transport"
)

// This file detects proxies, blocklists, captive portals and TLS inspection between a
// gateway and the service.

// ofProxy classifies the errors of a proxy.
func ofProxy(cause error) fault.Code {
	var (
		answer  *transport.ProxyError
		invalid x509.CertificateInvalidError
		op      *net.OpError
	)
	switch {
	case errors.Is(cause, transport.ErrProxyAddress):
		return fault.ProxyAddress
	case errors.As(cause, new(*fs.PathError)):
		return fault.CAUnreadable
	case errors.Is(cause, transport.ErrProxyExpectsTLS), errors.As(cause, new(*transport.NotTLSError)):
		return fault.ProxyScheme
	case errors.As(cause, &answer) && (answer.Status == http.StatusProxyAuthRequired || answer.Status == http.StatusUnauthorized):
		// tinyproxy rejects a wrong password with status 401.
		if !offersBasic(answer.Schemes) {
			return fault.ProxyAuthUnsupported
		}
		return fault.ProxyAuth
	case errors.As(cause, &answer) && portal(answer.Status):
		return fault.CaptivePortal
	case errors.As(cause, &answer) && answer.Status >= http.StatusBadGateway && answer.Status <= http.StatusGatewayTimeout:
		return fault.ProxyUpstream
	case errors.As(cause, &answer):
		return fault.ProxyRefused
	case errors.As(cause, &invalid) && invalid.Reason == x509.Expired && notYet(invalid):
		return fault.ClockImplausible
	case errors.As(cause, new(*tls.CertificateVerificationError)):
		return fault.ProxyUntrusted
	case errors.As(cause, &op) && op.Op == "dial":
		return fault.ProxyUnreachable
	case errors.Is(cause, context.DeadlineExceeded) || isTimeout(cause):
		return fault.ConnectTimeout
	}
	return fault.ProxyRefused
}

// offersBasic reports whether a proxy may accept basic authentication. If it lists no
// schemes, this is unknown.
func offersBasic(schemes []string) bool {
	return len(schemes) == 0 || slices.ContainsFunc(schemes, func(s string) bool { return strings.EqualFold(s, "Basic") })
}

// blocked reports whether the name server returned an address of the gateway itself instead
// of Azure's, as blocklists do. There, nothing listens, or a server has a certificate for
// another name.
func blocked(e *transport.Error) bool {
	host, _, err := net.SplitHostPort(e.Address)
	if err != nil || e.Proxy != "" || e.Remote == nil {
		return false
	}
	var other *transport.CertificateError
	if e.Stage != transport.StageTCP && (!errors.As(e.Err, &other) || other.Named()) {
		return false
	}
	_, azure := CloudOf(host)
	reached, err := netip.ParseAddrPort(e.Remote.String())
	return azure && err == nil && Blocked(reached.Addr())
}

// Blocked reports whether address is one that blocklists return for a name.
func Blocked(address netip.Addr) bool {
	address = address.Unmap()
	return address.IsLoopback() || address.IsUnspecified()
}

// blockedError adds the address to which the name resolved.
type blockedError struct {
	address string
	err     error
}

func (e *blockedError) Error() string {
	return fmt.Sprintf("the name resolves to this gateway itself (%s): %v", e.address, e.err)
}
func (e *blockedError) Unwrap() error { return e.err }

// portal reports whether an HTTP status indicates a captive portal: a redirection, or 511
// (RFC 6585 §6).
func portal(status int) bool {
	return status/100 == 3 || status == http.StatusNetworkAuthenticationRequired
}

// intercepted distinguishes TLS inspection from outdated roots on the gateway: the
// certificate is for a name of Azure, but its untrusted issuer is neither of the two that
// issue certificates for Azure. For other endpoints, such as a simulator, the right issuer
// is unknown.
func intercepted(e *transport.CertificateError) bool {
	return e.Named() && otherIssuer(e.Host, e.Certificate.Issuer)
}

// otherIssuer reports whether the issuer of a certificate for a name of Azure is neither of
// the two that issue certificates for Azure.
func otherIssuer(host string, issuer pkix.Name) bool {
	names := append([]string{issuer.CommonName}, issuer.Organization...)
	for _, name := range names {
		name = strings.ToLower(name)
		if strings.Contains(name, "microsoft") || strings.Contains(name, "digicert") {
			return false
		}
	}
	return Azure(host) && strings.Join(names, "") != ""
}

// inspectedError is a refusal on a connection with TLS inspection whose root this gateway
// trusts. Either side may have refused, so the error says nothing about the credential.
type inspectedError struct {
	issuer string
	err    error
}

func (e *inspectedError) Error() string {
	return fmt.Sprintf("%v; %q inspects this connection", e.err, e.issuer)
}
func (e *inspectedError) Unwrap() error { return e.err }

// Inspector returns the issuer of the verified certificate if the connection to a name of
// Azure is inspected, and "" otherwise.
func Inspector(host string, issuer pkix.Name) string {
	if otherIssuer(host, issuer) {
		return foreign.Line(issuer.String(), foreign.MaxText/2)
	}
	return ""
}
