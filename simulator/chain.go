package simulator

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"slices"
	"time"

	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// Sizes of faulty chains.
const (
	longLength  = 100       // certificates
	hugeText    = 1_000_000 // characters in base64, without the rest of the answer
	hugeKeyBits = 8192
	hugePrimes  = 8 // a modulus of two primes would take half a minute
	day         = 24 * time.Hour
)

// issue issues a certificate, and returns its chain: the device's certificate, the issuing CA
// and the root. kind is a value of Rule.Chain, or "" for a chain without fault.
func (i *issuing) issue(o order, kind string) ([]*x509.Certificate, error) {
	template, key, signer, root := o.template(), o.key, i.ca, i.root
	life := o.until.Sub(o.from)
	switch kind {
	case "foreign-leaf":
		foreign, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			return nil, err
		}
		key = foreign.Public()
	case "wrong-name":
		template.Subject.CommonName = "another-device"
	case "two-names":
		name := pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: o.name} // id-at-commonName, X.520
		template.Subject = pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{name, name}}
	case "leaf-ca":
		template.IsCA, template.BasicConstraintsValid = true, true
		template.KeyUsage |= x509.KeyUsageCertSign
	case "expired":
		template.NotBefore, template.NotAfter = o.from.Add(-day-life), o.from.Add(-day)
	case "not-yet-valid":
		template.NotBefore, template.NotAfter = o.from.Add(2*day), o.until.Add(2*day)
	case "megabyte":
		// The identifier is one for examples, RFC 5612.
		template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 1}, Value: make([]byte, hugeText/4*3)}}
	case "self-signed", "wrong-signature":
		other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			return nil, err
		}
		named := *signer.certificate
		if kind == "self-signed" { // in name only, because the key belongs to the device
			named = *template
		}
		named.PublicKey = other.Public()
		leaf, err := (&authority{&named, other}).sign(template, key)
		return []*x509.Certificate{leaf, signer.certificate, root.certificate}, err
	case "expired-issuer", "short-issuer":
		from, until := o.from, o.from.Add(life/2)
		if kind == "expired-issuer" {
			from, until = o.from.Add(-2*day), o.from.Add(-day)
		}
		var err error
		if signer, root, err = i.limited(from, until); err != nil {
			return nil, err
		}
	case "rsa-8192":
		if i.huge == nil {
			var err error
			if i.huge, err = newHugeAuthority(o.from); err != nil {
				return nil, err
			}
		}
		signer, root = i.huge.ca, i.huge.root
	case "hundred":
		return o.longChain()
	}
	leaf, err := signer.sign(template, key)
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{leaf, signer.certificate, root.certificate}, nil
}

// limited returns the issuing CA with a different period of validity, and a root for it.
func (i *issuing) limited(from, until time.Time) (ca, root *authority, err error) {
	if root, err = newAuthority(elliptic.P384(), rootName, nil, from); err != nil {
		return nil, nil, err
	}
	template := authorityTemplate(issuerName, from)
	template.NotBefore, template.NotAfter, template.MaxPathLenZero = from, until, true
	certificate, err := root.sign(template, i.ca.key.Public())
	return &authority{certificate, i.ca.key}, root, err
}

// newHugeAuthority creates an authority with a key whose signatures take long to verify.
func newHugeAuthority(now time.Time) (*issuing, error) {
	root, err := newAuthority(elliptic.P384(), rootName, nil, now)
	if err != nil {
		return nil, err
	}
	key, err := rsa.GenerateMultiPrimeKey(rand.Reader, hugePrimes, hugeKeyBits) //nolint:staticcheck // it protects nothing
	if err != nil {
		return nil, err
	}
	certificate, err := root.sign(authorityTemplate(issuerName, now), key.Public())
	return &issuing{root: root, ca: &authority{certificate, key}}, err
}

// longChain returns a chain in which each certificate is signed by the next, from the device's to a
// root.
func (o order) longChain() ([]*x509.Certificate, error) {
	var parent *authority
	var chain []*x509.Certificate
	for n := longLength - 1; n > 0; n-- {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		one := &authority{authorityTemplate(fmt.Sprintf("dpsd-sim CA %d", n), o.from), key}
		signer := one
		if parent != nil {
			signer = parent
		}
		if one.certificate, err = signer.sign(one.certificate, key.Public()); err != nil {
			return nil, err
		}
		chain, parent = append(chain, one.certificate), one
	}
	leaf, err := parent.sign(o.template(), o.key)
	if err != nil {
		return nil, err
	}
	chain = append(chain, leaf)
	slices.Reverse(chain)
	return chain, nil
}

// encodeChain returns the JSON value of a chain.
func encodeChain(chain []*x509.Certificate, kind string, set Settings) any {
	if set.ChainWithoutRoot && len(chain) > 2 {
		chain = chain[:len(chain)-1]
	}
	switch chain = slices.Clone(chain); kind {
	case "empty":
		return []string{}
	case "leaf-only", "self-signed":
		chain = chain[:1]
	case "reordered":
		slices.Reverse(chain)
	case "duplicate":
		chain = append(chain, chain[len(chain)-1])
	}
	texts := make([]any, 0, len(chain))
	for _, c := range chain {
		texts = append(texts, chainElement(c, set.ChainFormat))
	}
	switch kind {
	case "not-a-list":
		return texts[0]
	case "not-text":
		texts[1] = 7
	case "garbage":
		texts[1] = base64.StdEncoding.EncodeToString([]byte("this is not a certificate"))
	}
	return texts
}

// chainElement writes a certificate in a format of Settings.ChainFormat.
func chainElement(c *x509.Certificate, format string) string {
	switch format {
	case scenario.ChainPEM:
		return string(certificatePEM(c.Raw))
	case scenario.ChainBase64PEM:
		return base64.StdEncoding.EncodeToString(certificatePEM(c.Raw))
	}
	return base64.StdEncoding.EncodeToString(c.Raw)
}
