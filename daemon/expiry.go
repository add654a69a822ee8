package daemon

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/event"
)

// expiryDays are how long before the device certificate expires that is announced.
var expiryDays = []int{1, 7, 30}

// ended is what is announced after the end.
const ended = -1

// expiry is when the service will refuse the device certificate, because it or a
// certificate of its chain has expired. The zero value is that of a gateway without one.
type expiry struct {
	at        time.Time
	because   string // the certificate of the chain that expires first; "": the device's own
	announced int    // the last of expiryDays that was announced, or ended
}

// expiryOf returns when the certificate of a proof expires.
func expiryOf(p attest.Proof) expiry {
	e := expiry{at: p.Expires}
	if p.ExpiresFirst > 0 {
		e.because = fmt.Sprintf("certificate %d of %d in its chain", p.ExpiresFirst+1, len(p.Certificate.Certificate))
	}
	return e
}

// String says for STATUS= what was announced.
func (e expiry) String() string {
	verb, did := "expires", "does"
	if e.announced == ended {
		verb, did = "expired", "did"
	}
	text := "the device certificate " + verb + " on " + e.at.UTC().Format(time.DateOnly)
	if e.because != "" {
		text += ", because " + e.because + " " + did
	}
	return text
}

// advice says how to renew what expires.
func (e expiry) advice() string {
	what := "Install a renewed certificate"
	if e.because != "" {
		what = "Have the issuer renew that certificate, and install the new chain"
	}
	return what + ": dpsd reads a \"file:\" again when it changes; for a \"credential:\", run: systemctl restart --no-block dpsd"
}

// announce says once for each of expiryDays that the certificate expires, and once that it
// has expired.
func (s *supervisor) announce(now time.Time) {
	e := &s.expiry
	if e.at.IsZero() {
		return
	}
	left := e.at.Sub(now.Round(0)) // by the wall clock, as the certificate
	due := 0
	for _, days := range expiryDays {
		if left <= time.Duration(days)*24*time.Hour {
			due = days
			break
		}
	}
	if left <= 0 {
		due = ended
	}
	if due == e.announced {
		return
	}
	renewed := due == 0 || e.announced != 0 && due > e.announced
	e.announced = due
	switch {
	case renewed:
	case due == ended:
		s.tell(event.CertificateExpired, zap.Time("notAfter", e.at), zap.String("because", e.because), zap.String("advice", e.advice()))
	default:
		s.tell(event.CertificateExpires, zap.Time("notAfter", e.at), zap.Int("withinDays", due), zap.String("because", e.because), zap.String("advice", e.advice()))
	}
	if s.ready && s.attempt == nil && s.lastFault.Code == "" {
		s.notify.setStatus(s.standing())
	}
}
