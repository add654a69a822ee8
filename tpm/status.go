package tpm

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Status describes a TPM.
type Status struct {
	// Manufacturer, Vendor and Firmware are what the TPM reports, such as "IFX", "SLB9672" and
	// "15.23".
	Manufacturer, Vendor, Firmware string
	// Algorithms are the types of keys that the TPM supports.
	Algorithms []Algorithm
	// LockedOut means that wrong passwords have locked the TPM.
	LockedOut bool
	// Failures is the number of wrong passwords. The TPM locks itself when it reaches Limit.
	// It decreases by one after each Recovery.
	Failures, Limit int
	Recovery        time.Duration
	// OwnerPassword means that the owner has a password, so that only keys with a persistent
	// parent can be used.
	OwnerPassword bool
}

// Status queries the TPM.
func (d *Device) Status(ctx context.Context) (Status, error) {
	var status Status
	err := d.do(ctx, "ask the TPM for its status", func(l *link) (err error) {
		s := session{l, d}
		if status.Algorithms, err = s.supported(); err != nil {
			return err
		}
		fixed, err := s.properties(tpm2.TPMPTFamilyIndicator)
		if err != nil {
			return err
		}
		variable, err := s.properties(tpm2.TPMPTPermanent)
		if err != nil {
			return err
		}
		status.Manufacturer = text(fixed[tpm2.TPMPTManufacturer])
		status.Vendor = text(fixed[tpm2.TPMPTVendorString1], fixed[tpm2.TPMPTVendorString2], fixed[tpm2.TPMPTVendorString3], fixed[tpm2.TPMPTVendorString4])
		firmware := fixed[tpm2.TPMPTFirmwareVersion1]
		status.Firmware = fmt.Sprintf("%d.%d", firmware>>16, firmware&0xffff)
		permanent := variable[tpm2.TPMPTPermanent]
		status.OwnerPassword = permanent&ownerAuthSet != 0
		status.LockedOut = permanent&inLockout != 0
		status.Failures = int(variable[tpm2.TPMPTLockoutCounter])
		status.Limit = int(variable[tpm2.TPMPTMaxAuthFail])
		status.Recovery = time.Duration(variable[tpm2.TPMPTLockoutInterval]) * time.Second
		return nil
	})
	if err != nil {
		return Status{}, err
	}
	return status, nil
}

// Bits of the property TPM_PT_PERMANENT, which has the type TPMA_PERMANENT (part 2, 8.6).
const (
	ownerAuthSet = 1 << 0
	inLockout    = 1 << 9
)

// text returns the printable ASCII characters of a property.
func text(words ...uint32) string {
	var b []byte
	for _, w := range words {
		b = binary.BigEndian.AppendUint32(b, w)
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, string(b)))
}

// properties returns the properties of the group that begins with first.
func (s session) properties(first tpm2.TPMPT) (map[tpm2.TPMPT]uint32, error) {
	all := make(map[tpm2.TPMPT]uint32)
	for from := first; ; {
		response, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(from), PropertyCount: 100}.Execute(s)
		if err != nil {
			return nil, err
		}
		list, err := response.CapabilityData.Data.TPMProperties()
		if err != nil {
			return nil, err
		}
		for _, p := range list.TPMProperty {
			all[p.Property] = p.Value
		}
		n := len(list.TPMProperty)
		if !response.MoreData || n == 0 || list.TPMProperty[n-1].Property < from {
			return all, nil
		}
		from = list.TPMProperty[n-1].Property + 1
	}
}

// supported returns the algorithms that both this package and the TPM support.
func (s session) supported() ([]Algorithm, error) {
	algorithms, err := s.algorithms()
	if err != nil {
		return nil, err
	}
	var all []Algorithm
	if algorithms[tpm2.TPMAlgECC] && algorithms[tpm2.TPMAlgECDSA] {
		response, err := tpm2.GetCapability{Capability: tpm2.TPMCapECCCurves, PropertyCount: 255}.Execute(s)
		if err != nil {
			return nil, err
		}
		curves, err := response.CapabilityData.Data.ECCCurves()
		if err != nil {
			return nil, err
		}
		has := make(map[tpm2.TPMECCCurve]bool)
		for _, c := range curves.ECCCurves {
			has[c] = true
		}
		for _, a := range []Algorithm{P256, P384, P521} {
			if has[a.curve()] {
				all = append(all, a)
			}
		}
	}
	if algorithms[tpm2.TPMAlgRSA] && algorithms[tpm2.TPMAlgRSASSA] {
		for _, a := range []Algorithm{RSA2048, RSA3072, RSA4096} {
			_, err := tpm2.TestParms{Parameters: tpm2.TPMTPublicParms{Type: tpm2.TPMAlgRSA, Parameters: rsaParameters(a.bits(), 0)}}.Execute(s)
			kind, _ := kindOf(err)
			switch {
			case err == nil:
				all = append(all, a)
			case kind != Failed && kind != Unsupported: // TPM_RC_VALUE, TPM_RC_KEY_SIZE
				return nil, err
			}
		}
	}
	if algorithms[tpm2.TPMAlgKeyedHash] && algorithms[tpm2.TPMAlgHMAC] {
		all = append(all, HMAC)
	}
	return all, nil
}

// Object is a persistent key in a TPM.
type Object struct {
	// Handle is the handle of the key.
	Handle Parent
	// Kind describes the key, such as "ec-p256".
	Kind string
	// Storage means that the key can be a parent, and can be used without a policy.
	Storage bool
	// Public is the public key, or nil if this package does not know its kind.
	Public crypto.PublicKey
}

// List returns the persistent keys of the TPM.
func (d *Device) List(ctx context.Context) ([]Object, error) {
	var objects []Object
	err := d.do(ctx, "list the persistent keys", func(l *link) (err error) {
		objects, err = session{l, d}.list()
		return err
	})
	if err != nil {
		return nil, err
	}
	return objects, nil
}

func (s session) list() ([]Object, error) {
	const first = 0x81000000
	response, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 255}.Execute(s)
	if err != nil {
		return nil, err
	}
	handles, err := response.CapabilityData.Data.Handles()
	if err != nil {
		return nil, err
	}
	var objects []Object
	for _, h := range handles.Handle {
		response, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(s)
		if err != nil {
			return nil, err
		}
		a, err := parseArea(response.OutPublic.Bytes())
		if err != nil {
			return nil, err
		}
		objects = append(objects, Object{Parent(h), a.describe(), a.storage() && a.userWithAuth(), a.key})
	}
	return objects, nil
}

// Result is the result of a test.
type Result struct {
	// Schemes are the TLS signature schemes whose signatures the standard library accepts.
	Schemes []tls.SignatureScheme
	// TLS12 and TLS13 say in which versions of TLS the key can authenticate a client.
	TLS12, TLS13 bool
	// Salt is the length of the salt of RSA-PSS with SHA-256, in bytes; TLS requires 32. It is
	// -1 if the key does not support RSA-PSS.
	Salt int
	// Load and Use are how long the TPM took to load the key, and to use it once.
	Load, Use time.Duration
}

// Test loads a key and uses it. It signs with each TLS scheme, and verifies the signatures with
// the standard library. With an HMAC key, it compares two results.
func (d *Device) Test(ctx context.Context, f *File) (Result, error) {
	r := Result{Salt: -1}
	began := time.Now()
	k, err := d.Load(ctx, f)
	if err != nil {
		return r, err
	}
	defer func() { _ = k.Close() }() // the result of the test matters more
	r.Load = time.Since(began)
	began = time.Now()
	if f.Algorithm == HMAC {
		first, err := k.HMAC([]byte("dpsd"))
		r.Use = time.Since(began)
		if err != nil {
			return r, err
		}
		second, err := k.HMAC([]byte("dpsd"))
		if err == nil && string(first) != string(second) {
			err = explain("compute an HMAC", errors.New("the TPM returned two different results"))
		}
		return r, err
	}
	for _, scheme := range k.schemes {
		function, opts := optionsOf(scheme)
		digest := function.New().Sum(nil)
		began = time.Now()
		signature, err := k.Sign(nil, digest, opts)
		r.Use = time.Since(began)
		if err == nil {
			err = explain("sign", verify(f.Public(), function, digest, signature, opts))
		}
		if err != nil {
			return r, err
		}
		r.Schemes = append(r.Schemes, scheme)
	}
	r.TLS12, r.TLS13 = len(r.Schemes) > 0, tls13(f.Algorithm, r.Schemes)
	if f.public.canPSS() {
		r.Salt, err = k.salt()
	}
	return r, err
}

// optionsOf returns the hash function and the options of a TLS scheme.
func optionsOf(scheme tls.SignatureScheme) (crypto.Hash, crypto.SignerOpts) {
	for _, h := range hashesOfTLS() {
		switch scheme {
		case h.pss:
			return h.function, &rsa.PSSOptions{Hash: h.function, SaltLength: rsa.PSSSaltLengthEqualsHash}
		case h.ecdsa, h.pkc:
			return h.function, h.function
		}
	}
	panic("unknown scheme") // schemes returns no other
}

// salt returns the length of the salt of RSA-PSS with SHA-256, or -1.
func (k *Key) salt() (int, error) {
	digest := crypto.SHA256.New().Sum(nil)
	var signature []byte
	err := k.do(func(s session) (err error) {
		signature, err = s.sign(k.object(), digest, sigScheme(tpm2.TPMAlgRSAPSS, tpm2.TPMAlgSHA256))
		return err
	})
	if kind, _ := kindOf(err); err != nil && kind == Unsupported {
		return -1, nil
	}
	if err != nil {
		return -1, explain("sign", err)
	}
	for n := range k.file.public.bits / 8 {
		if verify(k.Public(), crypto.SHA256, digest, signature, &rsa.PSSOptions{SaltLength: max(n, 1)}) == nil {
			return max(n, 1), nil
		}
	}
	return -1, explain("sign", errInvalid)
}
