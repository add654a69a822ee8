package tpmtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"io"
	"math/big"
	"sync"
	"syscall"

	"github.com/google/go-tpm/tpm2"
)

// slots is how many objects a TPM can load at the same time.
const slots = 3

// TPM is a TPM in memory that creates primary keys and signing keys, and signs. Its fields may be
// changed while no operation runs. It can be used in a testing/synctest bubble.
type TPM struct {
	// Before is called before each command; n is the number of commands with this code so far.
	// If it returns a response code other than 0, or an error, the command is not executed.
	// It may sleep.
	Before func(command tpm2.TPMCC, n int) (tpm2.TPMRC, error)
	// Curves are the curves that the TPM supports; nil means P-256 and P-384.
	Curves []tpm2.TPMECCCurve
	// LongSalt means that the salt of RSA-PSS is as long as possible.
	LongSalt bool
	// Absent means that the TPM cannot be opened.
	Absent bool

	mu     sync.Mutex
	seed   [32]byte
	keys   map[string]any // by the private part
	loaded map[tpm2.TPMHandle]object
	counts map[tpm2.TPMCC]int
	opened int
}

type object struct {
	key    any
	public tpm2.TPMTPublic
}

// Open implements tpm.Device.Open.
func (f *TPM) Open(string) (io.ReadWriteCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Absent {
		return nil, syscall.ENOENT
	}
	f.opened++
	return &connection{tpm: f}, nil
}

// Reset gives the TPM a new seed, so that it can no longer load earlier keys.
func (f *TPM) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, _ = rand.Read(f.seed[:])
	f.loaded = nil
}

// Count returns how many commands of a code the TPM has received.
func (f *TPM) Count(command tpm2.TPMCC) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[command]
}

// Loaded returns how many objects are in the TPM.
func (f *TPM) Loaded() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.loaded)
}

// Connections returns how many connections are open.
func (f *TPM) Connections() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.opened
}

type connection struct {
	tpm      *TPM
	response []byte
}

func (c *connection) Write(command []byte) (int, error) {
	response, err := c.tpm.execute(command)
	if err != nil {
		return 0, err
	}
	c.response = response
	return len(command), nil
}

func (c *connection) Read(b []byte) (int, error) {
	if len(c.response) == 0 {
		return 0, io.EOF
	}
	n := copy(b, c.response)
	c.response = c.response[n:]
	return n, nil
}

func (c *connection) Close() error {
	c.tpm.mu.Lock()
	defer c.tpm.mu.Unlock()
	c.tpm.opened--
	return nil
}

// handles contains the number of handles of each command that this TPM supports.
var handles = map[tpm2.TPMCC]int{
	tpm2.TPMCCGetCapability: 0, tpm2.TPMCCTestParms: 0, tpm2.TPMCCCreatePrimary: 1, tpm2.TPMCCCreate: 1,
	tpm2.TPMCCLoad: 1, tpm2.TPMCCSign: 1, tpm2.TPMCCFlushContext: 1,
}

// execute executes a command (TPM 2.0 Library, part 1, 18).
func (f *TPM) execute(command []byte) ([]byte, error) {
	sessions := binary.BigEndian.Uint16(command) == uint16(tpm2.TPMSTSessions)
	code := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
	f.mu.Lock()
	if f.counts == nil {
		f.counts = make(map[tpm2.TPMCC]int)
		f.keys = make(map[string]any)
	}
	if f.loaded == nil {
		f.loaded = make(map[tpm2.TPMHandle]object)
	}
	f.counts[code]++
	n, before := f.counts[code], f.Before
	f.mu.Unlock()
	if before != nil {
		if rc, err := before(code, n); err != nil || rc != 0 {
			return reply(false, rc, nil, nil), err
		}
	}
	count, known := handles[code]
	if !known {
		return reply(false, tpm2.TPMRCCommandCode, nil, nil), nil
	}
	rest := command[10:]
	var handle tpm2.TPMHandle
	if count == 1 {
		handle = tpm2.TPMHandle(binary.BigEndian.Uint32(rest))
		rest = rest[4:]
	}
	if sessions {
		rest = rest[4+binary.BigEndian.Uint32(rest):]
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out, parameters, rc := f.run(code, handle, rest)
	if rc != 0 {
		return reply(false, rc, nil, nil), nil
	}
	return reply(sessions, 0, out, parameters), nil
}

// reply encodes a response.
func reply(sessions bool, rc tpm2.TPMRC, handle *tpm2.TPMHandle, parameters []byte) []byte {
	tag := uint16(tpm2.TPMSTNoSessions)
	var body []byte
	if handle != nil {
		body = binary.BigEndian.AppendUint32(body, uint32(*handle))
	}
	if sessions {
		tag = uint16(tpm2.TPMSTSessions)
		body = binary.BigEndian.AppendUint32(body, uint32(len(parameters)))
		body = append(body, parameters...)
		body = append(body, 0, 0, 1, 0, 0) // the response to a password
	} else {
		body = append(body, parameters...)
	}
	b := binary.BigEndian.AppendUint16(nil, tag)
	b = binary.BigEndian.AppendUint32(b, uint32(10+len(body)))
	b = binary.BigEndian.AppendUint32(b, uint32(rc))
	return append(b, body...)
}

func (f *TPM) run(code tpm2.TPMCC, handle tpm2.TPMHandle, parameters []byte) (*tpm2.TPMHandle, []byte, tpm2.TPMRC) {
	known, exists := f.loaded[handle]
	switch code {
	case tpm2.TPMCCFlushContext:
		delete(f.loaded, handle)
		if !exists {
			return nil, nil, tpm2.TPMRCHandle
		}
		return nil, nil, 0
	case tpm2.TPMCCGetCapability:
		return nil, f.capability(tpm2.TPMCap(binary.BigEndian.Uint32(parameters))), 0
	case tpm2.TPMCCTestParms:
		if bits := binary.BigEndian.Uint16(parameters[6:]); bits != 2048 {
			return nil, nil, tpm2.TPMRCValue | 0x1c0
		}
		return nil, nil, 0
	case tpm2.TPMCCCreatePrimary:
		private, public := f.create(tpm2.TPM2BPublic{})
		return f.load(private, public, true)
	case tpm2.TPMCCSign:
		if !exists {
			return nil, nil, tpm2.TPMRCHandle
		}
		return f.sign(known, parameters)
	}
	if !exists {
		return nil, nil, tpm2.TPMRCHandle
	}
	switch code {
	case tpm2.TPMCCCreate:
		rest := parameters[2+binary.BigEndian.Uint16(parameters):]
		template, err := tpm2.Unmarshal[tpm2.TPM2BPublic](rest)
		if err != nil {
			return nil, nil, tpm2.TPMRCSize
		}
		private, public := f.create(*template)
		b := tpm2.Marshal(tpm2.TPM2BPrivate{Buffer: private})
		b = append(b, tpm2.Marshal(tpm2.New2B(public))...)
		b = append(b, 0, 0)    // creationData
		b = append(b, 0, 0)    // creationHash
		b = append(b, 0x80, 2) // the ticket: TPM_ST_ATTEST_CREATION is not checked
		return nil, append(b, 0x40, 0, 0, 7, 0, 0), 0
	case tpm2.TPMCCLoad:
		private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](parameters)
		if err != nil {
			return nil, nil, tpm2.TPMRCSize
		}
		public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](parameters[2+len(private.Buffer):])
		if err != nil {
			return nil, nil, tpm2.TPMRCSize
		}
		contents, err := public.Contents()
		if err != nil || f.keys[string(private.Buffer)] == nil || string(private.Buffer[:32]) != string(f.seed[:]) {
			return nil, nil, tpm2.TPMRCIntegrity | 0x1c0
		}
		return f.load(private.Buffer, *contents, false)
	}
	return nil, nil, tpm2.TPMRCCommandCode
}

func (f *TPM) capability(c tpm2.TPMCap) []byte {
	b := []byte{0} // there is no more data
	b = binary.BigEndian.AppendUint32(b, uint32(c))
	switch c {
	case tpm2.TPMCapAlgs:
		all := []tpm2.TPMAlgID{tpm2.TPMAlgRSA, tpm2.TPMAlgHMAC, tpm2.TPMAlgKeyedHash, tpm2.TPMAlgSHA256, tpm2.TPMAlgSHA384, tpm2.TPMAlgRSASSA, tpm2.TPMAlgRSAPSS, tpm2.TPMAlgECDSA, tpm2.TPMAlgECC}
		b = binary.BigEndian.AppendUint32(b, uint32(len(all)))
		for _, a := range all {
			b = binary.BigEndian.AppendUint16(b, uint16(a))
			b = append(b, 0, 0, 0, 0)
		}
	case tpm2.TPMCapECCCurves:
		curves := f.Curves
		if curves == nil {
			curves = []tpm2.TPMECCCurve{tpm2.TPMECCNistP256, tpm2.TPMECCNistP384}
		}
		b = binary.BigEndian.AppendUint32(b, uint32(len(curves)))
		for _, c := range curves {
			b = binary.BigEndian.AppendUint16(b, uint16(c))
		}
	default:
		b = append(b, 0, 0, 0, 0)
	}
	return b
}

// create creates a key of the type of a template; without a template, a P-256 key.
func (f *TPM) create(template tpm2.TPM2BPublic) (private []byte, public tpm2.TPMTPublic) {
	public = tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true, Restricted: true, Decrypt: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
	}
	if contents, err := template.Contents(); err == nil {
		public = *contents
	}
	var key any
	if public.Type == tpm2.TPMAlgRSA {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		key = k
		public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
	} else {
		curve := elliptic.P256()
		if p, err := public.Parameters.ECCDetail(); err == nil && p.CurveID == tpm2.TPMECCNistP384 {
			curve = elliptic.P384()
		}
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			panic(err)
		}
		key = k
		point, err := k.PublicKey.Bytes()
		if err != nil {
			panic(err)
		}
		n := len(point) / 2
		public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+n]}, Y: tpm2.TPM2BECCParameter{Buffer: point[1+n:]},
		})
	}
	private = append(f.seed[:len(f.seed):len(f.seed)], make([]byte, 16)...)
	_, _ = rand.Read(private[len(f.seed):])
	f.keys[string(private)] = key
	return private, public
}

func (f *TPM) load(private []byte, public tpm2.TPMTPublic, primary bool) (*tpm2.TPMHandle, []byte, tpm2.TPMRC) {
	if len(f.loaded) == slots {
		return nil, nil, tpm2.TPMRCObjectMemory
	}
	handle := tpm2.TPMHandle(0x80000000)
	for f.loaded[handle].key != nil {
		handle++
	}
	f.loaded[handle] = object{key: f.keys[string(private)], public: public}
	name, err := tpm2.ObjectName(&public)
	if err != nil {
		return nil, nil, tpm2.TPMRCHash
	}
	var b []byte
	if primary {
		b = tpm2.Marshal(tpm2.New2B(public))
		b = append(b, 0, 0, 0, 0)                   // creationData, creationHash
		b = append(b, 0x80, 2, 0x40, 0, 0, 7, 0, 0) // the ticket
		return &handle, append(b, tpm2.Marshal(name)...), 0
	}
	return &handle, tpm2.Marshal(name), 0
}

func (f *TPM) sign(o object, parameters []byte) (*tpm2.TPMHandle, []byte, tpm2.TPMRC) {
	n := int(binary.BigEndian.Uint16(parameters))
	digest := parameters[2 : 2+n]
	scheme := tpm2.TPMAlgID(binary.BigEndian.Uint16(parameters[2+n:]))
	hash := tpm2.TPMAlgID(binary.BigEndian.Uint16(parameters[4+n:]))
	function, err := hash.Hash()
	if err != nil {
		return nil, nil, tpm2.TPMRCHash
	}
	b := binary.BigEndian.AppendUint16(nil, uint16(scheme))
	b = binary.BigEndian.AppendUint16(b, uint16(hash))
	number := func(i *big.Int) {
		b = binary.BigEndian.AppendUint16(b, uint16(len(i.Bytes())))
		b = append(b, i.Bytes()...)
	}
	switch k := o.key.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, k, digest)
		if err != nil {
			return nil, nil, tpm2.TPMRCFailure
		}
		number(r)
		number(s)
	case *rsa.PrivateKey:
		var signature []byte
		if scheme == tpm2.TPMAlgRSAPSS {
			salt := rsa.PSSSaltLengthEqualsHash
			if f.LongSalt {
				salt = rsa.PSSSaltLengthAuto
			}
			signature, err = rsa.SignPSS(rand.Reader, k, function, digest, &rsa.PSSOptions{SaltLength: salt})
		} else {
			signature, err = rsa.SignPKCS1v15(nil, k, function, digest)
		}
		if err != nil {
			return nil, nil, tpm2.TPMRCFailure
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(signature)))
		b = append(b, signature...)
	}
	return nil, b, 0
}
