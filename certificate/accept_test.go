package certificate_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/certificate"
)

// now is the time of all checks.
var now = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// fixedKey returns the same key for the same number, so that an input that the fuzzer has
// found stays valid.
func fixedKey(t testing.TB, number byte) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{number}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// plan describes a chain: the certificates, leaf first, and the keys of each and of their
// issuers. The last one signs itself.
type plan struct {
	certificates []*x509.Certificate
	public       []crypto.PublicKey
	issuers      []*x509.Certificate
	signers      []crypto.Signer
}

// planned returns the plan of a valid chain for the registration ID "gw-1" and fixedKey(1).
func planned(t testing.TB) *plan {
	p := &plan{}
	for i, name := range []string{"gw-1", "Intermediate", "Root"} {
		one := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i) + 1), Subject: pkix.Name{CommonName: name},
			NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(i, 0, 30),
			BasicConstraintsValid: true, IsCA: i > 0, SubjectKeyId: []byte(name),
			KeyUsage: x509.KeyUsageDigitalSignature,
		}
		if i > 0 {
			one.KeyUsage = x509.KeyUsageCertSign
		}
		p.certificates = append(p.certificates, one)
		p.public = append(p.public, fixedKey(t, byte(i)+1).Public())
		p.signers = append(p.signers, fixedKey(t, byte(min(i+2, 3))))
	}
	p.issuers = []*x509.Certificate{p.certificates[1], p.certificates[2], p.certificates[2]}
	return p
}

// texts signs the certificates and returns them in base64.
func (p *plan) texts(t testing.TB) (texts []string) {
	t.Helper()
	for i, one := range p.certificates {
		der, err := x509.CreateCertificate(rand.Reader, one, p.issuers[i], p.public[i], p.signers[i])
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, base64.StdEncoding.EncodeToString(der))
	}
	return texts
}

// chainCase is a chain, and why it is rejected. The functions change the valid chain; nil
// changes nothing.
type chainCase struct {
	says   string
	plan   func(*plan)
	texts  func([]string) []string
	raw    func(string) string
	reason string
}

// document returns the JSON of the chain.
func (c chainCase) document(t testing.TB) []byte {
	t.Helper()
	p := planned(t)
	if c.plan != nil {
		c.plan(p)
	}
	texts := p.texts(t)
	if c.texts != nil {
		texts = c.texts(texts)
	}
	raw, err := json.Marshal(texts)
	if err != nil {
		t.Fatal(err)
	}
	if c.raw != nil {
		raw = []byte(c.raw(string(raw)))
	}
	return raw
}

// der returns the certificate of a text in base64.
func der(text string) []byte {
	data, _ := base64.StdEncoding.DecodeString(text)
	return data
}

func pemOf(text string) string { return forms["PEM"](der(text)) }

// verbatim replaces the JSON.
func verbatim(text string) func(string) string { return func(string) string { return text } }

// change returns a function that changes one text.
func change(i int, to func(string) string) func([]string) []string {
	return func(texts []string) []string {
		texts[i] = to(texts[i])
		return texts
	}
}

func commonNames(names ...string) (all pkix.Name) {
	for _, name := range names {
		all.ExtraNames = append(all.ExtraNames, pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: name})
	}
	return all
}

// sha1Signed signs a certificate again, with SHA-1: crypto/x509 creates no such certificates.
func sha1Signed(t testing.TB, text string, key *ecdsa.PrivateKey) string {
	t.Helper()
	var one struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(der(text), &one); err != nil {
		t.Fatal(err)
	}
	withSHA256, withSHA1 := []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2}, []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1}
	// The name of the algorithm is shorter, so the lengths around it change.
	var tbs []asn1.RawValue
	if rest, err := asn1.UnmarshalWithParams(one.TBS.FullBytes, &tbs, ""); err != nil || len(rest) > 0 {
		t.Fatal(err)
	}
	for i, part := range tbs {
		if bytes.Contains(part.FullBytes, withSHA256) && part.Tag == asn1.TagSequence && i < 3 {
			algorithm, err := asn1.Marshal(pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}})
			if err != nil || !bytes.Contains(algorithm, withSHA1) {
				t.Fatal(err)
			}
			tbs[i] = asn1.RawValue{FullBytes: algorithm}
		}
	}
	signed, err := asn1.Marshal(tbs)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha1.Sum(signed)
	signature, err := key.Sign(rand.Reader, sum[:], crypto.SHA1)
	if err != nil {
		t.Fatal(err)
	}
	one.TBS = asn1.RawValue{FullBytes: signed}
	one.Algorithm = pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}}
	one.Signature = asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
	result, err := asn1.Marshal(one)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(result)
}

func acceptedChains(t testing.TB) []chainCase {
	first := func(n int) func([]string) []string { return func(all []string) []string { return all[:n] } }
	return []chainCase{
		{says: "the whole chain"},
		{says: "a chain without the root", texts: first(2)},
		{says: "a leaf alone", texts: first(1)},
		{says: "mixed encodings", texts: func(all []string) []string {
			return []string{forms["base64 of PEM"](der(all[0])), pemOf(all[1]), all[2]}
		}},
		{says: "PEM with the line ends of Windows", texts: change(1, func(s string) string { return strings.ReplaceAll(pemOf(s), "\n", "\r\n") })},
		{says: "base64 in lines with the line ends of Windows", texts: change(1, func(s string) string { return s[:64] + "\r\n" + s[64:] + "\r\n" })},
		{says: "PEM in one block with white space around it", texts: change(0, func(s string) string { return " \n" + pemOf(s) + "\r\n\t " })},
		{says: "white space in the JSON", raw: func(s string) string { return " " + strings.ReplaceAll(s, ",", " ,\n\t") + "\n" }},
		{says: "a chain of exactly 64 KiB", raw: func(s string) string { return s + strings.Repeat(" ", 64<<10-len(s)) }},
		{says: "a leaf that begins in exactly an hour", plan: func(p *plan) { p.certificates[0].NotBefore = now.Add(time.Hour) }},
		{says: "a leaf that expires in a second", plan: func(p *plan) { p.certificates[0].NotAfter = now.Add(time.Second) }},
		{says: "a leaf without basic constraints", plan: func(p *plan) { p.certificates[0].BasicConstraintsValid = false }},
		{says: "a leaf with more than a common name in its subject", plan: func(p *plan) {
			p.certificates[0].Subject = pkix.Name{CommonName: "gw-1", Organization: []string{"gw-2"}, Country: []string{"DE"}}
		}},
		{says: "an authority without key usages", plan: func(p *plan) { p.certificates[1].KeyUsage = 0 }},
		{says: "a root that has signed itself with SHA-1", texts: change(2, func(s string) string { return sha1Signed(t, s, fixedKey(t, 3)) })},
		{says: "an authority with an RSA key of 4096 bits", plan: func(p *plan) {
			key, err := rsa.GenerateKey(rand.Reader, 4096)
			if err != nil {
				t.Fatal(err)
			}
			p.public[1], p.signers[0] = key.Public(), key
		}},
		{says: "eight certificates", plan: func(p *plan) {
			for i := 3; i < 8; i++ {
				next := *p.certificates[2]
				next.Subject.CommonName, next.SubjectKeyId = fmt.Sprint("Root ", i), []byte{byte(i)}
				p.certificates, p.public = append(p.certificates, &next), append(p.public, fixedKey(t, 3).Public())
				p.issuers[i-1] = &next
				p.issuers, p.signers = append(p.issuers, &next), append(p.signers, fixedKey(t, 3))
			}
		}},
	}
}

func rejectedChains(t testing.TB) []chainCase {
	const clock = "; the clock of this gateway shows 2026-11-29T12:00:00Z"
	return []chainCase{
		// The list.
		{says: "an empty list", raw: verbatim("[]"), reason: "the chain is empty"},
		{says: "text that is not JSON", raw: func(s string) string { return s[:len(s)-1] }, reason: "the chain is not a list of strings"},
		{says: "JSON with text after it", raw: func(s string) string { return s + "x" }, reason: "the chain is not a list of strings"},
		{says: "a certificate outside of a list", raw: func(s string) string { return s[1:strings.Index(s, ",")] }, reason: "the chain is not a list of strings"},
		{says: "an object", raw: verbatim(`{"0":"MII="}`), reason: "the chain is not a list of strings"},
		{says: "a list in the list", raw: func(s string) string { return "[" + s + "]" }, reason: "the chain is not a list of strings"},
		{says: "numbers", raw: verbatim("[1,2,3]"), reason: "the chain is not a list of strings"},
		{says: "a number after the certificates", raw: func(s string) string { return s[:len(s)-1] + ",1]" }, reason: "the chain is not a list of strings"},
		{says: "null instead of a certificate", raw: func(s string) string { return s[:len(s)-1] + ",null]" }, reason: "certificate 4 of 4 is empty"},
		{says: "an empty text instead of a certificate", texts: change(1, func(string) string { return "" }), reason: "certificate 2 of 3 is empty"},
		{says: "white space instead of a certificate", texts: change(0, func(string) string { return " \r\n" }), reason: "certificate 1 of 3 is empty"},
		{says: "nine certificates", texts: func(all []string) []string { return slices.Repeat(all, 3) }, reason: "the chain has 9 certificates; at most 8 are allowed"},
		{says: "100 certificates", texts: func(all []string) []string { return slices.Repeat(all[:1], 100) }, reason: "the chain has 100 certificates; at most 8 are allowed"},
		{says: "64 KiB and a byte", raw: func(s string) string { return s + strings.Repeat(" ", 64<<10+1-len(s)) }, reason: "the chain has 65537 bytes; at most 65536 are allowed"},
		{says: "1 MiB", raw: verbatim(`["` + strings.Repeat("A", 1<<20-4) + `"]`), reason: "the chain has 1048576 bytes; at most 65536 are allowed"},

		// The form of a certificate.
		{says: "garbage in the second element", texts: change(1, func(string) string { return "garbage!" }), reason: "certificate 2 of 3 is neither base64 nor PEM"},
		{says: "garbage in base64 in the second element", texts: change(1, func(string) string { return "Z2FyYmFnZQ==" }), reason: "certificate 2 of 3 is malformed: malformed certificate"},
		{says: "base64 for addresses", texts: change(0, func(s string) string { return base64.URLEncoding.EncodeToString(append(der(s), 0xff, 0xff, 0xff)) }), reason: "certificate 1 of 3 is neither base64 nor PEM"},
		{says: "a truncated certificate", texts: change(2, func(s string) string { return base64.StdEncoding.EncodeToString(der(s)[:100]) }), reason: "certificate 3 of 3 is malformed: malformed certificate"},
		{says: "data after the DER", texts: change(1, func(s string) string { return base64.StdEncoding.EncodeToString(append(der(s), 0)) }), reason: "certificate 2 of 3 is malformed: trailing data"},
		{says: "data after the PEM block", texts: change(1, func(s string) string { return pemOf(s) + "x" }), reason: "certificate 2 of 3 is followed by other text"},
		{says: "data after the PEM block in base64", texts: change(1, func(s string) string { return base64.StdEncoding.EncodeToString([]byte(pemOf(s) + "x")) }), reason: "certificate 2 of 3 is followed by other text"},
		{says: "the whole chain in one element", texts: func(all []string) []string { return []string{pemOf(all[0]) + pemOf(all[1])} }, reason: "certificate 1 of 1 is followed by other text"},
		{says: "text before the PEM block", texts: change(1, func(s string) string { return "subject=CN = Intermediate\n" + pemOf(s) }), reason: "certificate 2 of 3 is neither base64 nor PEM"},
		{says: "a PEM block without its end", texts: change(1, func(s string) string { return strings.TrimSuffix(pemOf(s), "-----END CERTIFICATE-----\n") }), reason: "certificate 2 of 3 is not a certificate in PEM"},
		{says: "a key in PEM", texts: change(1, func(s string) string { return strings.ReplaceAll(pemOf(s), "CERTIFICATE", "PRIVATE KEY") }), reason: "certificate 2 of 3 is not a certificate in PEM"},

		// The leaf.
		{says: "a leaf with a foreign key", plan: func(p *plan) { p.public[0] = fixedKey(t, 9).Public() }, reason: "certificate 1 of 3 is for a different key than the request"},
		{says: "only the authorities", texts: func(all []string) []string { return all[1:] }, reason: "certificate 1 of 2 is for a different key than the request"},
		{says: "a leaf in the second place", texts: func(all []string) []string { return []string{all[1], all[0], all[2]} }, reason: "certificate 2 of 3 is the gateway's certificate, which must be the first"},
		{says: "the reverse order", texts: func(all []string) []string { slices.Reverse(all); return all }, reason: "certificate 3 of 3 is the gateway's certificate, which must be the first"},
		{says: "a leaf for another gateway", plan: func(p *plan) { p.certificates[0].Subject.CommonName = "gw-2" }, reason: `certificate 1 of 3 has the common name "gw-2" instead of the registration ID`},
		{says: "a common name in capitals", plan: func(p *plan) { p.certificates[0].Subject.CommonName = "GW-1" }, reason: `certificate 1 of 3 has the common name "GW-1" instead of the registration ID`},
		{says: "a common name that begins with the registration ID", plan: func(p *plan) { p.certificates[0].Subject.CommonName = "gw-1\x00x" }, reason: `certificate 1 of 3 has the common name "gw-1\x00x" instead of the registration ID`},
		{says: "a long common name, which is truncated in the reason", plan: func(p *plan) { p.certificates[0].Subject.CommonName = strings.Repeat("gw-1", 1000) }, reason: `certificate 1 of 3 has the common name "` + strings.Repeat("gw-1", 16) + `" instead of the registration ID`},
		{says: "a leaf with two common names", plan: func(p *plan) { p.certificates[0].Subject = commonNames("gw-2", "gw-1") }, reason: "certificate 1 of 3 has 2 common names instead of one"},
		{says: "a leaf with the same common name twice", plan: func(p *plan) { p.certificates[0].Subject = commonNames("gw-1", "gw-1") }, reason: "certificate 1 of 3 has 2 common names instead of one"},
		{says: "a leaf whose name is only an alternative name", plan: func(p *plan) {
			p.certificates[0].Subject, p.certificates[0].DNSNames = pkix.Name{}, []string{"gw-1"}
		}, reason: "certificate 1 of 3 has 0 common names instead of one"},
		{says: "a leaf that is an authority", plan: func(p *plan) { p.certificates[0].IsCA = true }, reason: "certificate 1 of 3 is a CA certificate, not an end-entity certificate"},
		{says: "a self-signed leaf", plan: func(p *plan) { p.issuers[0], p.signers[0] = p.certificates[0], fixedKey(t, 1) }, texts: func(all []string) []string { return all[:1] }, reason: "certificate 1 of 1 is self-signed"},

		// Each certificate.
		{says: "the leaf twice", texts: func(all []string) []string { return slices.Insert(all, 1, all[0]) }, reason: "certificate 2 of 4 is in the chain twice"},
		{says: "an authority twice, in different encodings", texts: func(all []string) []string { return append(all, pemOf(all[1])) }, reason: "certificate 4 of 4 is in the chain twice"},
		{says: "an intermediate that is no authority", plan: func(p *plan) { p.certificates[1].IsCA = false }, reason: "certificate 2 of 3 is not a CA certificate"},
		{says: "an intermediate without basic constraints", plan: func(p *plan) { p.certificates[1].BasicConstraintsValid = false }, reason: "certificate 2 of 3 is not a CA certificate"},
		{says: "an intermediate that must not sign certificates", plan: func(p *plan) { p.certificates[1].KeyUsage = x509.KeyUsageDigitalSignature }, reason: "certificate 1 of 3 is not signed by certificate 2: invalid signature: parent certificate cannot sign this kind of certificate"},
		{says: "an RSA key of 8192 bits, before any signature is verified", plan: func(p *plan) { p.public[1] = longKey(8192) }, reason: "certificate 2 of 3 has an RSA key of 8192 bits; at most 4096 are allowed"},
		{says: "an RSA key of 4097 bits in the last certificate", plan: func(p *plan) { p.public[2] = longKey(4097) }, reason: "certificate 3 of 3 has an RSA key of 4097 bits; at most 4096 are allowed"},
		{says: "a leaf that is signed with SHA-1", texts: change(0, func(s string) string { return sha1Signed(t, s, fixedKey(t, 2)) }), reason: "certificate 1 of 3 has an insecure signature: ECDSA-SHA1"},
		{says: "an intermediate that is signed with SHA-1", texts: change(1, func(s string) string { return sha1Signed(t, s, fixedKey(t, 3)) }), reason: "certificate 2 of 3 has an insecure signature: ECDSA-SHA1"},
		{says: "a leaf alone that is signed with SHA-1", texts: func(all []string) []string { return []string{sha1Signed(t, all[0], fixedKey(t, 2))} }, reason: "certificate 1 of 1 has an insecure signature: ECDSA-SHA1"},

		// The times.
		{says: "a leaf that expired a day ago", plan: func(p *plan) { p.certificates[0].NotAfter = now.AddDate(0, 0, -1) }, reason: "certificate 1 of 3 expired at 2026-11-28T12:00:00Z" + clock},
		{says: "a leaf that expires now", plan: func(p *plan) { p.certificates[0].NotAfter = now }, reason: "certificate 1 of 3 expired at 2026-11-29T12:00:00Z" + clock},
		{says: "an intermediate that has expired", plan: func(p *plan) { p.certificates[1].NotAfter = now.Add(-time.Second) }, reason: "certificate 2 of 3 expired at 2026-11-29T11:59:59Z" + clock},
		{says: "a root that has expired", plan: func(p *plan) { p.certificates[2].NotAfter = now.Add(-time.Second) }, reason: "certificate 3 of 3 expired at 2026-11-29T11:59:59Z" + clock},
		{says: "a leaf that begins more than an hour later", plan: func(p *plan) { p.certificates[0].NotBefore = now.Add(time.Hour + time.Second) }, reason: "certificate 1 of 3 is not valid before 2026-11-29T13:00:01Z" + clock},
		{says: "an intermediate that begins tomorrow", plan: func(p *plan) { p.certificates[1].NotBefore = now.AddDate(0, 0, 1) }, reason: "certificate 2 of 3 is not valid before 2026-11-30T12:00:00Z" + clock},
		{says: "certificates that are never valid together", plan: func(p *plan) {
			p.certificates[0].NotBefore, p.certificates[1].NotAfter = now.Add(20*time.Minute), now.Add(20*time.Minute)
		}, reason: "certificate 2 of 3 expires before the whole chain becomes valid"},

		// The issuers.
		{says: "authorities in the wrong order", texts: func(all []string) []string { return []string{all[0], all[2], all[1]} }, reason: "certificate 1 of 3 names a different issuer than certificate 2"},
		{says: "a missing intermediate", texts: func(all []string) []string { return []string{all[0], all[2]} }, reason: "certificate 1 of 2 names a different issuer than certificate 2"},
		{says: "an issuer with the right key and another name", plan: func(p *plan) {
			issuer := *p.certificates[2]
			issuer.Subject.CommonName = "Other"
			p.issuers[1] = &issuer
		}, reason: "certificate 2 of 3 names a different issuer than certificate 3"},
		{says: "an issuer with the right name and another key", plan: func(p *plan) { p.signers[0] = fixedKey(t, 9) }, reason: "certificate 1 of 3 is not signed by certificate 2: ECDSA verification failure"},
		{says: "an intermediate that another root has signed", plan: func(p *plan) { p.signers[1] = fixedKey(t, 9) }, reason: "certificate 2 of 3 is not signed by certificate 3: ECDSA verification failure"},
		{says: "a changed leaf", texts: change(0, func(s string) string {
			data := der(s)
			data[len(data)-1] ^= 1
			return base64.StdEncoding.EncodeToString(data)
		}), reason: "certificate 1 of 3 is not signed by certificate 2: ECDSA verification failure"},
	}
}

// longKey returns a public RSA key with this number of bits, for which there is no private
// key.
func longKey(bits int) *rsa.PublicKey {
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
	return &rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: 65537}
}

func TestAccept(t *testing.T) {
	for _, c := range acceptedChains(t) {
		t.Run(c.says+" is accepted", func(t *testing.T) {
			raw := c.document(t)
			chain, err := certificate.Accept(raw, fixedKey(t, 1).Public(), "gw-1", now)
			if err != nil {
				t.Fatal(err)
			}
			if broken := brokenRule(t, raw, chain); broken != "" {
				t.Error(broken)
			}
		})
	}
	for says, raw := range map[string]string{"null": "null", "an absent chain": ""} {
		t.Run(says+" means that none was issued", func(t *testing.T) {
			if chain, err := certificate.Accept([]byte(raw), fixedKey(t, 1).Public(), "gw-1", now); !errors.Is(err, certificate.ErrNotIssued) || chain != nil {
				t.Errorf("got %v, %v", chain, err)
			}
		})
	}
	for _, c := range rejectedChains(t) {
		t.Run(c.says+" is rejected", func(t *testing.T) {
			chain, err := certificate.Accept(c.document(t), fixedKey(t, 1).Public(), "gw-1", now)
			rejected, is := errors.AsType[*certificate.RejectedError](err)
			if !is || chain != nil {
				t.Fatalf("got %v, %v", chain, err)
			}
			if rejected.Reason != c.reason {
				t.Errorf("the reason is %q, want %q", rejected.Reason, c.reason)
			}
			if err.Error() != "the issued certificate is unusable: "+c.reason {
				t.Errorf("the error is %q", err)
			}
		})
	}
}

func TestAcceptTakesBoundedMemory(t *testing.T) {
	fill := func(unit string, size int) string { return "[" + strings.Repeat(unit, size/len(unit)) }
	for says, raw := range map[string]string{
		"64 KiB of empty texts":        fill(`"",`, 64<<10-8) + `""]`,
		"64 KiB of short certificates": fill(`"MAA=",`, 64<<10-16) + `"MAA="]`,
		"64 KiB of lists":              fill("[", 64<<10-1),
		"one text of 64 KiB":           `["` + strings.Repeat("A", 64<<10-4) + `"]`,
		"16 MiB":                       `["` + strings.Repeat("A", 16<<20) + `"]`,
	} {
		var before, after runtime.MemStats
		key := fixedKey(t, 1)
		data := []byte(raw)
		runtime.ReadMemStats(&before)
		_, err := certificate.Accept(data, key.Public(), "gw-1", now)
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; err == nil || took > 4<<20 {
			t.Errorf("%s: %v, and it took %d bytes", says, err, took)
		}
	}
}

// brokenRule checks an accepted chain with code that shares nothing with the package but
// crypto/x509, and returns the rule that it breaks, or "".
func brokenRule(t testing.TB, raw []byte, chain certificate.Chain) string {
	t.Helper()
	var list []any
	if err := json.Unmarshal(raw, &list); err != nil || len(list) != len(chain) || len(list) == 0 || len(list) > 8 || len(raw) > 65536 {
		return fmt.Sprintf("%d elements, %d certificates, %d bytes: %v", len(list), len(chain), len(raw), err)
	}
	extension := func(one *x509.Certificate, last int, to any) bool {
		for _, e := range one.Extensions {
			if e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, last}) {
				_, err := asn1.Unmarshal(e.Value, to)
				return err == nil
			}
		}
		return false
	}
	seen := map[string]bool{}
	for i, given := range chain {
		one, err := x509.ParseCertificate(given.Raw)
		if err != nil {
			return fmt.Sprintf("certificate %d: %v", i, err)
		}
		if seen[string(one.Raw)] {
			return fmt.Sprintf("certificate %d appears twice", i)
		}
		seen[string(one.Raw)] = true
		if !one.NotAfter.After(now) || one.NotBefore.Sub(now) > time.Hour {
			return fmt.Sprintf("certificate %d is valid from %v to %v", i, one.NotBefore, one.NotAfter)
		}
		if key, is := one.PublicKey.(*rsa.PublicKey); is && key.Size() > 512 {
			return fmt.Sprintf("certificate %d has a key of %d bytes", i, key.Size())
		}
		var constraints struct {
			CA     bool `asn1:"optional"`
			Length int  `asn1:"optional,default:-1"`
		}
		extension(one, 19, &constraints)
		if constraints.CA != (i > 0) {
			return fmt.Sprintf("certificate %d: authority is %v", i, constraints.CA)
		}
		if i == 0 {
			continue
		}
		child := chain[i-1]
		if !bytes.Equal(child.RawIssuer, one.RawSubject) {
			return fmt.Sprintf("certificate %d does not name its issuer", i-1)
		}
		if err := one.CheckSignature(child.SignatureAlgorithm, child.RawTBSCertificate, child.Signature); err != nil {
			return fmt.Sprintf("certificate %d: %v", i-1, err)
		}
		var usage asn1.BitString
		if extension(one, 15, &usage) && usage.At(5) != 1 {
			return fmt.Sprintf("certificate %d must not sign certificates", i)
		}
	}
	leaf := chain[0]
	want, err := x509.MarshalPKIXPublicKey(fixedKey(t, 1).Public())
	if err != nil || !bytes.Equal(leaf.RawSubjectPublicKeyInfo, want) {
		return "the leaf has another key"
	}
	if bytes.Equal(leaf.RawIssuer, leaf.RawSubject) {
		return "the leaf names itself as its issuer"
	}
	var subject pkix.RDNSequence
	if _, err := asn1.Unmarshal(leaf.RawSubject, &subject); err != nil {
		return err.Error()
	}
	names := 0
	for _, set := range subject {
		for _, attribute := range set {
			if attribute.Type.String() == "2.5.4.3" {
				names++
				if attribute.Value != "gw-1" {
					return fmt.Sprintf("the common name is %v", attribute.Value)
				}
			}
		}
	}
	if names != 1 {
		return fmt.Sprint(names, " common names")
	}
	key, err := x509.MarshalPKCS8PrivateKey(fixedKey(t, 1))
	if err != nil {
		return err.Error()
	}
	if _, err := tls.X509KeyPair(chain.PEM(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})); err != nil {
		return err.Error()
	}
	return ""
}

func FuzzAccept(f *testing.F) {
	for _, c := range slices.Concat(acceptedChains(f), rejectedChains(f)) {
		if raw := c.document(f); len(raw) < 10_000 {
			f.Add(raw)
		}
	}
	key := fixedKey(f, 1)
	f.Fuzz(func(t *testing.T, raw []byte) {
		given := bytes.Clone(raw)
		chain, err := certificate.Accept(raw, key.Public(), "gw-1", now)
		if !bytes.Equal(given, raw) {
			t.Fatal("the chain was written to")
		}
		if err == nil {
			if broken := brokenRule(t, raw, chain); broken != "" {
				t.Fatal(broken)
			}
			return
		}
		if errors.Is(err, certificate.ErrNotIssued) {
			return
		}
		if rejected, is := errors.AsType[*certificate.RejectedError](err); !is || chain != nil || rejected.Reason == "" || len(rejected.Reason) > 400 {
			t.Fatalf("got %v, %v", chain, err)
		}
	})
}
