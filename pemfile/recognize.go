package pemfile

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"math/big"
	"strings"

	"github.com/dpsd-project/dpsd/input"
)

// This file recognizes the content of a file without PEM. Only explanations use it, so it
// runs only if a file cannot be used.

// what is a kind of content.
type what int

const (
	unknown what = iota
	empty
	certificate
	privateKey
	encryptedKey
	pfx
	p7b
	request
	publicKey
	pemText      // encoded in base64
	symmetricKey // base64 text of 16 to 64 bytes
)

// names describes the kinds for people.
var names = map[what]string{
	unknown:      "something that is neither PEM nor DER",
	empty:        "nothing",
	certificate:  "a certificate",
	privateKey:   "a private key",
	encryptedKey: "a private key that is protected by a passphrase",
	pfx:          "a PKCS#12 archive (PFX)",
	p7b:          "a PKCS#7 bundle (P7B)",
	request:      "a certificate request (CSR)",
	publicKey:    "a public key",
	pemText:      "PEM",
	symmetricKey: "a symmetric key",
}

// content is the content of a file without PEM and its form.
type content struct {
	what        what
	base64      bool   // as base64 text
	unsupported string // algorithm of a private key that the service does not accept
}

func found(data []byte) content {
	if len(bytes.TrimSpace(data)) == 0 {
		return content{what: empty}
	}
	if w := kindOf(data); w != unknown {
		return content{what: w, unsupported: unsupported(data)}
	}
	text := bytes.TrimSpace(data)
	if bytes.HasPrefix(text, []byte("ssh-")) || bytes.HasPrefix(text, []byte("ecdsa-sha2-")) {
		return content{what: publicKey}
	}
	der := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Decode(der, text)
	if err != nil {
		return content{}
	}
	defer clear(der)
	switch w := kindOf(der[:n]); {
	case w != unknown:
		return content{w, true, unsupported(der[:n])}
	case Has(der[:n]):
		return content{what: pemText, base64: true}
	case n >= 16 && n <= 64:
		return content{what: symmetricKey, base64: true}
	}
	return content{}
}

// says returns the beginning of an explanation.
func (c content) says() string {
	switch {
	case c.what == unknown, c.what == empty, c.what == symmetricKey, c.what == publicKey:
		return "the file contains " + names[c.what]
	case c.what == pemText:
		return "the file contains PEM that is encoded in base64"
	case c.base64:
		return "the file contains " + names[c.what] + " in base64 without the PEM header and footer"
	case c.what == pfx, c.what == p7b:
		return "the file is " + names[c.what]
	}
	return "the file contains " + names[c.what] + " in DER, not in PEM"
}

// command returns an openssl command that reads the file and overwrites it.
func (c content) command(openssl string) string {
	if c.base64 {
		return "cp -p FILE FILE.orig && base64 -d FILE.orig | openssl " + openssl + " -out FILE"
	}
	return "cp -p FILE FILE.orig && openssl " + openssl + " -in FILE.orig -out FILE"
}

// asCertificate explains the content if a certificate is needed.
func (c content) asCertificate() error {
	m := c.explained()
	switch c.what {
	case certificate:
		m.Command = c.command("x509 -inform DER")
	case p7b:
		m.Command = c.command("pkcs7 -inform DER -print_certs")
	case privateKey, encryptedKey, request, publicKey, symmetricKey:
		m.Command, m.Then = findCertificate, "use that file"
	}
	return m
}

// asPrivateKey explains the content if a private key is needed.
func (c content) asPrivateKey() error {
	if c.unsupported != "" {
		return Unsupported(c.unsupported)
	}
	m := c.explained()
	switch c.what {
	case privateKey, encryptedKey:
		m.Command = c.command("pkey -inform DER")
	case symmetricKey:
		m.Command, m.Then = findPrivateKey, `set private_key to that file, or set type = "symmetric-key" and key in this [[credential]]`
	case certificate, p7b, request, publicKey:
		m.Command, m.Then = findPrivateKey, "set private_key to that file"
	}
	return m
}

// explained returns a mistake with the command for content that may contain a certificate,
// a private key or both.
func (c content) explained() *input.Mistake {
	m := &input.Mistake{What: c.says()}
	switch c.what {
	case pfx:
		m.Command, m.Then = c.command("pkcs12 -nodes"), "add -legacy to it if openssl reports an unsupported algorithm"
	case pemText:
		m.Command = "cp -p FILE FILE.orig && base64 -d FILE.orig >FILE"
	}
	return m
}

// Object identifiers that distinguish the kinds (RFC 8017, 8018, 5652, 7292, 5480).
var (
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidPKCS5      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5}
	oidPKCS12PBE  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 1}
	oidRSA        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidEC         = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidPrimeField = asn1.ObjectIdentifier{1, 2, 840, 10045, 1, 1}
	oidBrainpool  = asn1.ObjectIdentifier{1, 3, 36, 3, 3, 2, 8, 1, 1}
)

// algorithms are the algorithms of private keys (RFC 5958) that the service does not accept.
var algorithms = map[string]string{
	"1.2.840.113549.1.1.10":   "RSA-PSS only",
	"1.2.840.10040.4.1":       "DSA",
	"1.2.840.113549.1.3.1":    "Diffie-Hellman",
	"1.2.840.10046.2.1":       "Diffie-Hellman",
	"1.3.101.110":             "X25519",
	"1.3.101.111":             "X448",
	"1.3.101.112":             "Ed25519",
	"1.3.101.113":             "Ed448",
	"2.16.840.1.101.3.4.3.17": "ML-DSA",
	"2.16.840.1.101.3.4.3.18": "ML-DSA",
	"2.16.840.1.101.3.4.3.19": "ML-DSA",
	"2.16.840.1.101.3.4.4.1":  "ML-KEM",
	"2.16.840.1.101.3.4.4.2":  "ML-KEM",
	"2.16.840.1.101.3.4.4.3":  "ML-KEM",
}

// pkcs8 contains the parts of a private key in PKCS#8 that are inspected.
type pkcs8 struct {
	Version   int
	Algorithm pkix.AlgorithmIdentifier
	Key       []byte
}

// unsupported describes a private key that the service does not accept. It returns "" for
// any other content.
func unsupported(der []byte) string {
	const takes = "; DPS accepts RSA and EC on P-256, P-384 and P-521"
	switch curve := curveIn(der); {
	case curve == explicit:
		return ""
	case curve != "":
		return "a private key on " + curve + takes
	}
	var key pkcs8
	if rest, err := asn1.Unmarshal(der, &key); err == nil && len(rest) == 0 {
		switch algorithm := key.Algorithm.Algorithm; {
		case algorithm.Equal(oidRSA), algorithm.Equal(oidEC):
			return ""
		case algorithms[algorithm.String()] != "":
			return "a private key for " + algorithms[algorithm.String()] + takes
		default:
			return "a private key for the algorithm " + algorithm.String() + takes
		}
	}
	// openssl writes the version, p, q, g, the public and the private key.
	var dsa []*big.Int
	if rest, err := asn1.Unmarshal(der, &dsa); err == nil && len(rest) == 0 && len(dsa) == 6 {
		return "a private key for DSA" + takes
	}
	return ""
}

// curves describes the curves that crypto/x509 does not support.
var curves = []struct {
	name string
	oid  asn1.ObjectIdentifier
}{
	{"the curve secp256k1", asn1.ObjectIdentifier{1, 3, 132, 0, 10}},
	{"the curve P-192", asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 1}},
	{"the curve SM2", asn1.ObjectIdentifier{1, 2, 156, 10197, 1, 301}},
}

// explicit is the result of curveIn for a supported curve given by its parameters.
const explicit = "explicit"

// curveIn describes the curve in the DER of a key or certificate that crypto/x509
// cannot parse, or "" if it finds none.
func curveIn(der []byte) string {
	for _, c := range curves {
		if hasOID(der, c.oid) {
			return c.name
		}
	}
	if prefix, err := asn1.Marshal(oidBrainpool); err == nil && bytes.Contains(der, prefix[2:]) {
		return "a brainpool curve"
	}
	if hasOID(der, oidPrimeField) {
		for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
			if bytes.Contains(der, c.Params().P.Bytes()) && bytes.Contains(der, c.Params().N.Bytes()) {
				return explicit
			}
		}
		return "a curve that is given by its parameters"
	}
	return otherCurve(der)
}

// otherCurve returns the identifier of the curve of a private key that crypto/x509 cannot
// parse, or "" if it finds none.
func otherCurve(der []byte) string {
	var named asn1.ObjectIdentifier
	var key pkcs8
	if _, err := asn1.Unmarshal(der, &key); err == nil && key.Algorithm.Algorithm.Equal(oidEC) {
		_, _ = asn1.Unmarshal(key.Algorithm.Parameters.FullBytes, &named)
	}
	var sec1 struct {
		Version int
		Key     []byte
		Curve   asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
	}
	if _, err := asn1.Unmarshal(der, &sec1); err == nil {
		named = sec1.Curve
	}
	if len(named) == 0 || parse(der) != nil {
		return ""
	}
	return "the curve with the OID " + named.String()
}

func hasOID(der []byte, oid asn1.ObjectIdentifier) bool {
	encoded, err := asn1.Marshal(oid)
	return err == nil && bytes.Contains(der, encoded)
}

// kindOf returns the kind of DER data.
func kindOf(der []byte) what {
	if len(der) == 0 || der[0] != asn1.TagSequence|0x20 {
		return unknown
	}
	if _, err := x509.ParseCertificate(der); err == nil {
		return certificate
	}
	if _, err := x509.ParseCertificateRequest(der); err == nil {
		return request
	}
	if _, err := x509.ParsePKIXPublicKey(der); err == nil {
		return publicKey
	}
	if _, err := x509.ParsePKCS1PublicKey(der); err == nil {
		return publicKey
	}
	if parse(der) != nil || unsupported(der) != "" {
		return privateKey
	}
	var parts []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &parts); err != nil || len(rest) > 0 || len(parts) == 0 {
		return unknown
	}
	var oid asn1.ObjectIdentifier
	if _, err := asn1.Unmarshal(parts[0].FullBytes, &oid); err == nil {
		if oid.Equal(oidSignedData) {
			return p7b
		}
		return unknown
	}
	var version int
	if _, err := asn1.Unmarshal(parts[0].FullBytes, &version); err == nil {
		switch {
		case version == 3 && hasOID(der, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}):
			return pfx
		case curveIn(der) != "":
			return privateKey
		}
		return unknown
	}
	// EncryptedPrivateKeyInfo: an algorithm of PKCS#5 or PKCS#12, and bytes.
	var algorithm struct {
		OID  asn1.ObjectIdentifier
		Rest asn1.RawValue `asn1:"optional"`
	}
	if _, err := asn1.Unmarshal(parts[0].FullBytes, &algorithm); err == nil && len(parts) == 2 && parts[1].Tag == asn1.TagOctetString {
		for _, family := range []asn1.ObjectIdentifier{oidPKCS5, oidPKCS12PBE} {
			if strings.HasPrefix(algorithm.OID.String(), family.String()+".") {
				return encryptedKey
			}
		}
	}
	return unknown
}

// Recognize describes data without PEM, such as "the file is a PKCS#12 archive (PFX)". It
// returns "" if the data is neither a certificate, a key nor a bundle.
func Recognize(data []byte) string {
	if c := found(data); c.what != unknown && c.what != empty && c.what != symmetricKey {
		return c.says()
	}
	return ""
}
