package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"net"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/dpsd-project/dpsd/tpm/tpmtest"
)

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// parts splits a sequence of values. A size of two bytes precedes each value.
func parts(t *testing.T, text []byte) (all [][]byte) {
	t.Helper()
	for len(text) > 0 {
		part := must(tpm2.Unmarshal[tpm2.TPM2BData](text))(t).Buffer
		all, text = append(all, part), text[2+len(part):]
	}
	return all
}

func TestATPMDecryptsTheKeyOfItsChallengeAndTheTapCountsItsCommands(t *testing.T) {
	tap := must(newTap(tpmtest.Start(t).Socket))(t)
	t.Cleanup(tap.close)
	tpm := transport.FromReadWriteCloser(must(net.Dial("unix", tap.socket))(t))
	t.Cleanup(func() { _ = tpm.Close() })
	primary := func(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) *tpm2.CreatePrimaryResponse {
		t.Helper()
		return must(tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(tpm))(t)
	}
	// Identity Service uses the same templates.
	ek, srk := primary(tpm2.TPMRHEndorsement, tpm2.RSAEKTemplate), primary(tpm2.TPMRHOwner, tpm2.RSASRKTemplate)
	storage := tpm2.AuthHandle{Handle: srk.ObjectHandle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)}

	want := []byte("a symmetric key of the service")
	all := parts(t, must(challenge(tpm2.Marshal(ek.OutPublic), tpm2.Marshal(srk.OutPublic), want))(t))
	if len(all) != 5 {
		t.Fatalf("the challenge has %d parts", len(all))
	}
	activated := must(tpm2.ActivateCredential{
		ActivateHandle: storage,
		KeyHandle: tpm2.AuthHandle{Handle: ek.ObjectHandle, Name: ek.Name, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16,
			func(tpm transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
				_, err := tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement, NonceTPM: nonce, PolicySession: session}.Execute(tpm)
				return err
			})},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: all[0]}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: all[1]},
	}.Execute(tpm))(t)
	public := tpm2.BytesAs2B[tpm2.TPMTPublic](all[4])
	imported := must(tpm2.Import{
		ParentHandle: storage, EncryptionKey: tpm2.TPM2BData{Buffer: activated.CertInfo.Buffer}, ObjectPublic: public,
		Duplicate: tpm2.TPM2BPrivate{Buffer: all[2]}, InSymSeed: tpm2.TPM2BEncryptedSecret{Buffer: all[3]},
		Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgAES, KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
			Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB)},
	}.Execute(tpm))(t)
	key := must(tpm2.Load{ParentHandle: storage, InPrivate: imported.OutPrivate, InPublic: public}.Execute(tpm))(t)

	if _, _, err := tap.take(); err != nil {
		t.Fatal(err)
	}
	text := []byte(rand.Text())
	got := must(tpm2.Hmac{Handle: tpm2.AuthHandle{Handle: key.ObjectHandle, Name: key.Name, Auth: tpm2.PasswordAuth(nil)},
		Buffer: tpm2.TPM2BMaxBuffer{Buffer: text}, HashAlg: tpm2.TPMAlgSHA256}.Execute(tpm))(t)
	mac := hmac.New(sha256.New, want)
	mac.Write(text)
	if !bytes.Equal(got.OutHMAC.Buffer, mac.Sum(nil)) {
		t.Errorf("the TPM computed %x, want %x", got.OutHMAC.Buffer, mac.Sum(nil))
	}
	if commands, working, err := tap.take(); commands != 1 || working <= 0 || err != nil {
		t.Errorf("the tap counted %d commands in %s, %v", commands, working, err)
	}
}

func TestOtherLoadDoesNotIncreaseTheCostOfARegistration(t *testing.T) {
	cost := least([]effort{{cpu: 3}, {cpu: time.Second}, {cpu: 2}}, func(e effort) float64 { return float64(e.cpu) })
	if cost != 2 {
		t.Errorf("the cost is %v", cost)
	}
}
