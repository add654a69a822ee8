package daemon

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/event"
)

// expiryDays are the numbers of days before its end at which the expiry of the device
// certificate is announced.
var expiryDays = []int{1, 7, 30}

// ended is announced after the end.
const ended = -1

// expiry is when DPS will refuse the device certificate, because it or a certificate of its
// chain has expired. The zero value is for a gateway without a certificate.
type expiry struct {
	what      string // deviceCertificate or issuedCertificate
	at        time.Time
	because   string // the certificate of the chain that expires first; "": the device's own
	announced int    // the last of expiryDays that was announced, or ended; 0: none
}

// The certificates that expire, as text after "the".
const (
	deviceCertificate = "device certificate"
	issuedCertificate = "issued certificate"
)

// expiryOf returns when the certificate of a proof expires.
func expiryOf(p attest.Proof) expiry {
	e := expiry{what: deviceCertificate, at: p.Expires}
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
	text := "the " + e.what + " " + verb + " on " + e.at.UTC().Format(time.DateOnly)
	if e.because != "" {
		text += ", because " + e.because + " " + did
	}
	return text
}

// advice says how to renew the certificate that expires.
func (e expiry) advice() string {
	if e.what == issuedCertificate {
		return "If dpsd.toml has the table [certificate], dpsd renews it automatically, and dpsd status shows why a renewal fails"
	}
	what := "Install a renewed certificate"
	if e.because != "" {
		what = "Have the issuer renew that certificate, and install the new chain"
	}
	return what + ": dpsd reads a \"file:\" again when it changes; for a \"credential:\", run: systemctl restart --no-block dpsd"
}

// due returns which of expiryDays, or ended, holds now; 0: none.
func (e *expiry) due(now time.Time) int {
	left := e.at.Sub(now.Round(0)) // by the wall clock, like the certificate
	if left <= 0 {
		return ended
	}
	for _, days := range expiryDays {
		if left <= time.Duration(days)*24*time.Hour {
			return days
		}
	}
	return 0
}

// announceExpiry announces that the device certificate or the issued certificate expires or
// has expired.
func (s *supervisor) announceExpiry(now time.Time) {
	announced := !s.certificate.at.IsZero() && s.announce(&s.certificate, now)
	if e, from := s.issuedExpiry(); e != nil && !now.Round(0).Before(from) {
		announced = s.announce(e, now) || announced
	}
	if announced && s.systemd.ready && !s.running.active() && s.failures.last.Code == "" {
		s.systemd.setStatus(s.assignment(now))
	}
}

// announce announces once for each of expiryDays that a certificate expires, and once that it
// has expired. It reports whether the announcement has changed.
func (s *supervisor) announce(e *expiry, now time.Time) bool {
	due := e.due(now)
	if due == e.announced {
		return false
	}
	renewed := due == 0 || e.announced != 0 && due > e.announced
	e.announced = due
	switch {
	case renewed:
	case due == ended:
		s.log(event.CertificateExpired, zap.String("certificate", e.what), zap.Time("notAfter", e.at), zap.String("because", e.because), zap.String("advice", e.advice()))
	default:
		s.log(event.CertificateExpires, zap.String("certificate", e.what), zap.Time("notAfter", e.at), zap.Int("withinDays", due), zap.String("because", e.because), zap.String("advice", e.advice()))
	}
	return true
}
