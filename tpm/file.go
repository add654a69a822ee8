package tpm

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
)

// label is the PEM label of a TSS2 file
// (https://www.hansenpartnership.com/draft-bottomley-tpm2-keys.html).
const label = "TSS2 PRIVATE KEY"

const (
	begin = "-----BEGIN " + label + "-----"
	end   = "-----END " + label + "-----"
)

// maxText is the maximum length of the base64 text in a file. The text of an RSA key with 4096
// bits has about 2,500 characters.
const maxText = 8192

// The contents of the object identifiers 2.23.133.10.1.3, .4 and .5.
var (
	loadable   = []byte{0x67, 0x81, 0x05, 0x0a, 0x01, 0x03}
	importable = []byte{0x67, 0x81, 0x05, 0x0a, 0x01, 0x04}
	sealed     = []byte{0x67, 0x81, 0x05, 0x0a, 0x01, 0x05}
)

// File is a parsed TSS2 file. It is useless without the TPM that created it.
type File struct {
	// Algorithm is the type of the key.
	Algorithm Algorithm
	// Parent is the key with which the private part is encrypted.
	Parent Parent
	// Protected means that the key has a password, or that the file does not state that it
	// has none. Load refuses such a key, because a wrong password can lock the TPM for all
	// programs.
	Protected bool
	// Policy means that the key has a policy, which this package does not support. Load
	// refuses such a key.
	Policy bool

	public     area
	private    []byte
	secret     []byte // of an importable key: the seed of the outer encryption
	importable bool
	rsaParent  bool // whether the parent is derived from the RSA template
}

// Public returns the public key, *ecdsa.PublicKey or *rsa.PublicKey; nil for HMAC.
func (f *File) Public() crypto.PublicKey { return f.public.key }

// Is reports whether a text contains a TSS2 key in PEM. The text may also contain certificates.
func Is(text []byte) bool { return bytes.Contains(text, []byte(begin)) }

// Parse reads the TSS2 key in a text, without a TPM. The text may also contain certificates. The
// kind of an error is Damaged, or Unsupported if the file is valid but contains no key that dpsd
// can use.
func Parse(text []byte) (*File, error) {
	der, err := decode(text)
	if err != nil {
		return nil, &Error{Damaged, "read the key", err}
	}
	f, err := parse(der)
	if known, ok := errors.AsType[*Error](err); ok {
		known.Op = "read the key"
		return nil, known
	}
	if err != nil {
		return nil, &Error{Damaged, "read the key", err}
	}
	return f, nil
}

// decode returns the content of the only TSS2 block.
func decode(text []byte) ([]byte, error) {
	_, text, found := bytes.Cut(text, []byte(begin))
	if !found {
		return nil, errors.New("the file does not contain the line " + begin)
	}
	body, rest, found := bytes.Cut(text, []byte(end))
	switch {
	case !found:
		return nil, errors.New("its end is missing: the file is cut off or damaged")
	case Is(body) || Is(rest):
		return nil, errors.New("the file contains a second TSS2 key")
	case len(body) > maxText:
		return nil, fmt.Errorf("the key has %d characters; the maximum is %d", len(body), maxText)
	}
	packed := make([]byte, 0, len(body))
	for _, c := range body {
		if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			packed = append(packed, c)
		}
	}
	n, err := base64.StdEncoding.Decode(packed, packed)
	if err != nil {
		return nil, errors.New("it is not valid base64: the file is cut off or damaged")
	}
	return packed[:n], nil
}

var errDER = errors.New("it is not the DER encoding of a TSS2 key: the file is cut off or damaged")

// parse reads a TPMKey:
//
//	SEQUENCE {
//	  type        OBJECT IDENTIFIER
//	  emptyAuth   [0] EXPLICIT BOOLEAN OPTIONAL
//	  policy      [1] EXPLICIT SEQUENCE OPTIONAL
//	  secret      [2] EXPLICIT OCTET STRING OPTIONAL
//	  authPolicy  [3] EXPLICIT SEQUENCE OPTIONAL
//	  description [4] EXPLICIT UTF8String OPTIONAL
//	  rsaParent   [5] EXPLICIT BOOLEAN OPTIONAL
//	  parent      INTEGER
//	  pubkey      OCTET STRING
//	  privkey     OCTET STRING
//	}
func parse(text []byte) (*File, error) {
	outer := der(text)
	r, ok := outer.read(tagSequence)
	if !ok || len(outer) > 0 {
		return nil, errDER
	}
	kind, ok := r.read(tagOID)
	if !ok {
		return nil, errDER
	}
	f := &File{Protected: true}
	for len(r) > 0 && r[0]&0xe0 == tagOption {
		option := r[0]
		content, ok := r.read(option)
		if !ok {
			return nil, errDER
		}
		switch option - tagOption {
		case 0:
			f.Protected = !content.boolean()
		case 1, 3:
			f.Policy = true
		case 2:
			if f.secret, ok = sized2(content.read(tagOctets)); !ok {
				return nil, errDER
			}
		case 5:
			f.rsaParent = content.boolean()
		}
	}
	parent, ok := r.integer()
	if !ok {
		return nil, errDER
	}
	public, ok := sized2(r.read(tagOctets))
	if !ok {
		return nil, errDER
	}
	if f.private, ok = sized2(r.read(tagOctets)); !ok || len(r) > 0 || len(f.private) == 0 {
		return nil, errDER
	}
	switch {
	case bytes.Equal(kind, importable):
		f.importable = true
	case !bytes.Equal(kind, loadable) && !bytes.Equal(kind, sealed):
		return nil, unsupported("the file has the unknown type % x", []byte(kind)[:min(len(kind), 16)])
	}
	var err error
	if f.Parent, err = parentOf(parent); err != nil {
		return nil, err
	}
	if f.public, err = parseArea(public); err != nil {
		return nil, err
	}
	f.Algorithm, err = f.public.usable()
	f.Policy = f.Policy || !f.public.userWithAuth()
	return f, err
}

// parentOf checks the handle of a parent.
func parentOf(handle uint32) (Parent, error) {
	p := Parent(handle)
	switch {
	case handle == 0: // old files
		return Owner, nil
	case p == Owner, p == endorsement, p == null, p.Persistent():
		return p, nil
	}
	return 0, unsupported("the parent %v is neither a hierarchy nor a persistent key", p)
}

// encode returns the TSS2 file of a key without a password. derivedRSA means that a derived
// parent is an RSA key.
func encode(parent Parent, derivedRSA bool, public, private []byte) []byte {
	if parent == 0 {
		parent = Owner
	}
	var b []byte
	b = appendDER(b, tagOID, loadable)
	b = appendDER(b, tagOption, appendDER(nil, tagBoolean, []byte{0xff}))
	if derivedRSA && !parent.Persistent() {
		b = appendDER(b, tagOption|5, appendDER(nil, tagBoolean, []byte{0xff}))
	}
	// The parent is below 2³¹ or has a leading zero byte.
	b = appendDER(b, tagInteger, bigEndian(uint32(parent)))
	b = appendDER(b, tagOctets, append16(nil, public))
	b = appendDER(b, tagOctets, append16(nil, private))
	return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: appendDER(nil, tagSequence, b)})
}

// The DER tags in a file.
const (
	tagBoolean  = 0x01
	tagInteger  = 0x02
	tagOctets   = 0x04
	tagOID      = 0x06
	tagSequence = 0x30
	tagOption   = 0xa0 // context-specific, constructed
)

// der is the rest of a DER encoding. It is never copied.
type der []byte

// read removes the next element, which must have the tag, and returns its content.
func (d *der) read(tag byte) (der, bool) {
	b := *d
	if len(b) < 2 || b[0] != tag {
		return nil, false
	}
	n, b := int(b[1]), b[2:]
	if n >= 0x80 {
		size := n & 0x7f
		if size == 0 || size > 2 || len(b) < size {
			return nil, false
		}
		n = 0
		for _, c := range b[:size] {
			n = n<<8 | int(c)
		}
		b = b[size:]
	}
	if len(b) < n {
		return nil, false
	}
	*d = b[n:]
	return b[:n:n], true
}

// boolean reports whether the only element is a BOOLEAN that is true. Some programs encode true as
// 1, which violates DER.
func (d der) boolean() bool {
	content, ok := d.read(tagBoolean)
	return ok && len(d) == 0 && len(content) == 1 && content[0] != 0
}

// integer removes an INTEGER of at most 32 bits.
func (d *der) integer() (uint32, bool) {
	content, ok := d.read(tagInteger)
	if !ok || len(content) == 0 || len(content) > 5 || len(content) == 5 && content[0] != 0 {
		return 0, false
	}
	var n uint32
	for _, c := range content {
		n = n<<8 | uint32(c)
	}
	return n, true
}

func appendDER(b []byte, tag byte, content []byte) []byte {
	b = append(b, tag)
	switch n := len(content); {
	case n < 0x80:
		b = append(b, byte(n))
	case n < 0x100:
		b = append(b, 0x81, byte(n))
	default:
		b = append(b, 0x82, byte(n>>8), byte(n))
	}
	return append(b, content...)
}

// bigEndian returns the shortest non-negative INTEGER.
func bigEndian(n uint32) []byte {
	b := []byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
	for len(b) > 1 && b[0] == 0 && b[1] < 0x80 {
		b = b[1:]
	}
	return b
}

func unsupported(format string, a ...any) error {
	return &Error{Kind: Unsupported, Err: fmt.Errorf(format, a...)}
}
