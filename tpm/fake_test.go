package tpm_test

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"
	"go.uber.org/goleak"

	"github.com/dpsd-project/dpsd/tpm"
	"github.com/dpsd-project/dpsd/tpm/tpmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake returns a TPM in memory, its device, and the file of a key in it.
func fake(t *testing.T, a tpm.Algorithm) (*tpmtest.TPM, *tpm.Device, *tpm.File) {
	t.Helper()
	f := new(tpmtest.TPM)
	d := &tpm.Device{Open: f.Open}
	file := must(tpm.Parse(must(d.Create(t.Context(), a, tpm.Owner))(t)))(t)
	t.Cleanup(func() {
		synctest.Wait()
		if f.Loaded() != 0 || f.Connections() != 0 {
			t.Errorf("%d keys are loaded, and %d connections open", f.Loaded(), f.Connections())
		}
	})
	return f, d, file
}

// only calls before for one command.
func only(command tpm2.TPMCC, before func(n int) (tpm2.TPMRC, error)) func(tpm2.TPMCC, int) (tpm2.TPMRC, error) {
	first := 0
	return func(c tpm2.TPMCC, n int) (tpm2.TPMRC, error) {
		if c != command {
			return 0, nil
		}
		if first == 0 {
			first = n
		}
		return before(n - first)
	}
}

func sign(k *tpm.Key) error {
	digest := sha256.Sum256(nil)
	_, err := k.Sign(nil, digest[:], crypto.SHA256)
	return err
}

func elapsed(f func()) time.Duration {
	began := time.Now()
	f()
	return time.Since(began)
}

func TestLoadWaitsForATPMThatNeedsNineSecondsForAPrimaryKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d, file := fake(t, tpm.P256)
		f.Before = only(tpm2.TPMCCCreatePrimary, func(int) (tpm2.TPMRC, error) { time.Sleep(9 * time.Second); return 0, nil })
		var k *tpm.Key
		if took := elapsed(func() { k = must(d.Load(t.Context(), file))(t) }); took != 9*time.Second {
			t.Errorf("Load took %v", took)
		}
		defer k.Close()
		before := f.Count(tpm2.TPMCCCreatePrimary)
		for range 5 {
			if err := sign(k); err != nil {
				t.Fatal(err)
			}
		}
		if f.Count(tpm2.TPMCCCreatePrimary) != before {
			t.Error("a signature has derived the parent again")
		}
	})
}

func TestAfterTheDeadlineAKeyThatIsLoadedLateIsRemoved(t *testing.T) {
	for _, slow := range []tpm2.TPMCC{tpm2.TPMCCCreatePrimary, tpm2.TPMCCLoad} {
		synctest.Test(t, func(t *testing.T) {
			f, d, file := fake(t, tpm.P256)
			if err := must(d.Load(t.Context(), file))(t).Close(); err != nil { // from now on, TPM2_Load is the last command
				t.Fatal(err)
			}
			f.Before = only(slow, func(n int) (tpm2.TPMRC, error) {
				if n == 0 {
					time.Sleep(40 * time.Second)
				}
				return 0, nil
			})
			var err error
			if took := elapsed(func() { _, err = d.Load(t.Context(), file) }); took != 30*time.Second {
				t.Errorf("Load took %v", took)
			}
			wantKind(t, err, tpm.Slow)
			if f.Connections() != 1 {
				t.Fatalf("%d connections are open", f.Connections())
			}
			var k *tpm.Key
			if took := elapsed(func() { k = must(d.Load(t.Context(), file))(t) }); took != 10*time.Second {
				t.Errorf("the second Load took %v, and must wait for the first", took)
			}
			if f.Loaded() != 1 || f.Connections() != 1 {
				t.Errorf("%d keys are loaded, and %d connections open", f.Loaded(), f.Connections())
			}
			if err := errors.Join(sign(k), k.Close()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestATPMThatNeverAnswersHasOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d, file := fake(t, tpm.P256)
		answer := make(chan struct{})
		f.Before = only(tpm2.TPMCCLoad, func(int) (tpm2.TPMRC, error) { <-answer; return 0, nil })
		for range 5 {
			_, err := d.Load(t.Context(), file)
			wantKind(t, err, tpm.Slow)
			if f.Connections() != 1 {
				t.Fatalf("%d connections are open", f.Connections())
			}
		}
		close(answer)
	})
}

func TestACanceledLoadReturnsImmediately(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d, file := fake(t, tpm.P256)
		f.Before = only(tpm2.TPMCCLoad, func(int) (tpm2.TPMRC, error) { time.Sleep(9 * time.Second); return 0, nil })
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if took := elapsed(func() {
			if _, err := d.Load(ctx, file); !errors.Is(err, context.Canceled) {
				t.Errorf("the error is %v", err)
			}
		}); took != time.Second {
			t.Errorf("it took %v", took)
		}
		time.Sleep(9 * time.Second)
	})
}

func TestTheEndOfTheAttemptEndsASignature(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d, file := fake(t, tpm.P256)
		ctx, cancel := context.WithCancel(t.Context())
		k := must(d.Load(ctx, file))(t)
		f.Before = only(tpm2.TPMCCSign, func(int) (tpm2.TPMRC, error) { time.Sleep(20 * time.Second); return 0, nil })
		time.AfterFunc(time.Second, cancel)
		var closing error
		if took := elapsed(func() {
			if err := sign(k); !errors.Is(err, context.Canceled) {
				t.Errorf("the error is %v", err)
			}
			closing = k.Close()
		}); took != 6*time.Second {
			t.Errorf("it took %v", took)
		}
		wantKind(t, closing, tpm.Slow)
		if f.Loaded() != 1 {
			t.Errorf("%d keys are loaded", f.Loaded())
		}
		time.Sleep(14 * time.Second) // the cleanup of fake checks that the key is removed now
	})
}

func TestACommandToABusyTPMIsRepeatedWithIncreasingDelays(t *testing.T) {
	for name, answer := range map[string]func() (tpm2.TPMRC, error){
		"RETRY":          func() (tpm2.TPMRC, error) { return tpm2.TPMRCRetry, nil },
		"YIELDED":        func() (tpm2.TPMRC, error) { return tpm2.TPMRCYielded, nil },
		"TESTING":        func() (tpm2.TPMRC, error) { return tpm2.TPMRCTesting, nil },
		"NV_UNAVAILABLE": func() (tpm2.TPMRC, error) { return tpm2.TPMRCNVUnavailable, nil },
		"EBUSY":          func() (tpm2.TPMRC, error) { return 0, syscall.EBUSY },
	} {
		t.Run(name+" ten times is no fault", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, d, file := fake(t, tpm.P256)
				f.Before = only(tpm2.TPMCCLoad, func(n int) (tpm2.TPMRC, error) {
					if n < 10 {
						return answer()
					}
					return 0, nil
				})
				before := f.Count(tpm2.TPMCCLoad)
				var k *tpm.Key
				// 20 + 40 + … + 640 ms, then four times a second
				if took := elapsed(func() { k = must(d.Load(t.Context(), file))(t) }); took != 5260*time.Millisecond {
					t.Errorf("it took %v", took)
				}
				if n := f.Count(tpm2.TPMCCLoad) - before; n != 11 {
					t.Errorf("the command was sent %d times", n)
				}
				if err := k.Close(); err != nil {
					t.Error(err)
				}
			})
		})
		t.Run(name+" until the deadline is the kind Busy", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, d, file := fake(t, tpm.P256)
				f.Before = only(tpm2.TPMCCLoad, func(int) (tpm2.TPMRC, error) { return answer() })
				var err error
				if took := elapsed(func() { _, err = d.Load(t.Context(), file) }); took < 29*time.Second || took > 30*time.Second {
					t.Errorf("it took %v", took)
				}
				wantKind(t, err, tpm.Busy)
				f.Before = nil
				if err := must(d.Load(t.Context(), file))(t).Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestACommandToALockedTPMIsNotRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d, file := fake(t, tpm.P256)
		f.Before = only(tpm2.TPMCCSign, func(int) (tpm2.TPMRC, error) { return tpm2.TPMRCLockout, nil })
		k := must(d.Load(t.Context(), file))(t)
		defer k.Close()
		var err error
		if took := elapsed(func() { err = sign(k) }); took != 0 || f.Count(tpm2.TPMCCSign) != 1 {
			t.Errorf("%v, %d signatures", took, f.Count(tpm2.TPMCCSign))
		}
		wantKind(t, err, tpm.LockedOut)
	})
}

func TestAuthorizationFailsOnlyOnce(t *testing.T) {
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCAuthFail, tpm2.TPMRCBadAuth} {
		for _, a := range []tpm.Algorithm{tpm.P256, tpm.RSA2048} {
			synctest.Test(t, func(t *testing.T) {
				f, d, file := fake(t, a)
				f.Before = only(tpm2.TPMCCSign, func(int) (tpm2.TPMRC, error) { return rc | 0x800 | 0x100, nil }) // session 1
				for range 3 {
					k, err := d.Load(t.Context(), file)
					if err == nil {
						err = sign(k)
						k.Close()
					}
					wantKind(t, err, tpm.Protected)
				}
				if n := f.Count(tpm2.TPMCCSign); n != 1 {
					t.Errorf("%d authorizations failed", n)
				}
			})
		}
	}
}

func TestAfterAResetTheKeyIsUnusable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d, file := fake(t, tpm.P256)
		k := must(d.Load(t.Context(), file))(t)
		f.Reset()
		err := sign(k)
		wantKind(t, err, tpm.Unavailable) // as after a suspension: loading it again may help
		_ = k.Close()
		_, err = d.Load(t.Context(), file)
		wantKind(t, err, tpm.Unusable)
		again := must(tpm.Parse(must(d.Create(t.Context(), tpm.P256, tpm.Owner))(t)))(t)
		if err := must(d.Load(t.Context(), again))(t).Close(); err != nil {
			t.Errorf("a new key does not work: %v", err)
		}
	})
}

func TestAChipWithTheLongestSaltOffersOnlyPKCS1(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d, file := fake(t, tpm.RSA2048)
		f.LongSalt = true
		k := must(d.Load(t.Context(), file))(t)
		defer k.Close()
		want := []tls.SignatureScheme{tls.PKCS1WithSHA256, tls.PKCS1WithSHA384}
		if !slices.Equal(k.SupportedSchemes(), want) || k.TLS13() {
			t.Errorf("%v, TLS 1.3: %v", k.SupportedSchemes(), k.TLS13())
		}
		if err := handshake(t, k, tls.VersionTLS12); err != nil {
			t.Error(err)
		}
		digest := sha256.Sum256(nil)
		_, err := k.Sign(nil, digest[:], &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: rsa.PSSSaltLengthEqualsHash})
		wantKind(t, err, tpm.Unsupported)
		before := f.Count(tpm2.TPMCCSign)
		if err := must(d.Load(t.Context(), file))(t).Close(); err != nil {
			t.Error(err)
		}
		if n := f.Count(tpm2.TPMCCSign) - before; n != 0 {
			t.Errorf("the second Load has signed %d times", n)
		}
		r := must(d.Test(t.Context(), file))(t)
		if r.Salt != 256-32-2 || r.TLS13 || !r.TLS12 || !slices.Equal(r.Schemes, want) {
			t.Errorf("Test returns %+v", r)
		}
	})
}

func TestAChipWithoutPSSOffersOnlyPKCS1(t *testing.T) {
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCScheme, tpm2.TPMRCValue, tpm2.TPMRCAttributes} {
		synctest.Test(t, func(t *testing.T) {
			f, d, file := fake(t, tpm.RSA2048)
			f.Before = only(tpm2.TPMCCSign, func(int) (tpm2.TPMRC, error) { return rc | 0x2c0, nil }) // parameter 2
			k := must(d.Load(t.Context(), file))(t)
			defer k.Close()
			if k.TLS13() || !slices.Contains(k.SupportedSchemes(), tls.PKCS1WithSHA256) {
				t.Errorf("%v", k.SupportedSchemes())
			}
		})
	}
}

func TestTheErrorNamesTheAlgorithmThatTheFirmwareDoesNotSupport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d, _ := fake(t, tpm.P256)
		f.Curves = []tpm2.TPMECCCurve{tpm2.TPMECCNistP256}
		_, err := d.Create(t.Context(), tpm.P384, tpm.Owner)
		wantKind(t, err, tpm.Unsupported)
		if text := err.Error(); !strings.Contains(text, "ec-p384") || !strings.Contains(text, "ec-p256, rsa-2048") {
			t.Error(text)
		}
	})
}

func TestATPMThatAppearsLateIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d, file := fake(t, tpm.P256)
		f.Absent = true
		_, err := d.Load(t.Context(), file)
		wantKind(t, err, tpm.Unavailable)
		if !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		f.Absent = false
		if err := must(d.Load(t.Context(), file))(t).Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestATPMThatIsUnpluggedDuringAHandshakeIsUnavailable(t *testing.T) {
	for _, cause := range []error{syscall.EIO, syscall.ENODEV, syscall.EPIPE, io.ErrUnexpectedEOF} {
		synctest.Test(t, func(t *testing.T) {
			f, d, file := fake(t, tpm.P256)
			k := must(d.Load(t.Context(), file))(t)
			f.Before = only(tpm2.TPMCCSign, func(int) (tpm2.TPMRC, error) { return 0, cause })
			err := sign(k)
			wantKind(t, err, tpm.Unavailable)
			if !errors.Is(err, cause) {
				t.Error(err)
			}
			f.Before = nil
			f.Reset() // the objects are gone with the power
			wantKind(t, sign(k), tpm.Unavailable)
			if err := k.Close(); err != nil {
				t.Error(err)
			}
			_, err = d.Load(t.Context(), file)
			wantKind(t, err, tpm.Unusable)
		})
	}
}

func TestAfterALostConnectionAKeyNeverUsesTheHandleOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d, file := fake(t, tpm.P256)
		old := must(d.Load(t.Context(), file))(t)
		f.Before = only(tpm2.TPMCCSign, func(int) (tpm2.TPMRC, error) { return 0, syscall.EIO })
		wantKind(t, sign(old), tpm.Unavailable)
		f.Before = nil
		f.Reset()
		replacement := must(tpm.Parse(must(d.Create(t.Context(), tpm.P256, tpm.Owner))(t)))(t)
		k := must(d.Load(t.Context(), replacement))(t) // it has the handle that the old key had
		before := f.Count(tpm2.TPMCCSign)
		wantKind(t, sign(old), tpm.Unavailable)
		if f.Count(tpm2.TPMCCSign) != before {
			t.Error("the old key has signed with the new one")
		}
		if err := errors.Join(old.Close(), sign(k), k.Close()); err != nil {
			t.Error(err)
		}
	})
}

func TestATPMFullOfOtherKeysIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d, file := fake(t, tpm.P256)
		f.Before = only(tpm2.TPMCCLoad, func(int) (tpm2.TPMRC, error) { return tpm2.TPMRCObjectMemory, nil })
		_, err := d.Load(t.Context(), file)
		wantKind(t, err, tpm.Busy)
	})
}

func TestATPMThatIsNotOperationalIsUnavailable(t *testing.T) {
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCInitialize, tpm2.TPMRCFailure, tpm2.TPMRCUpgrade} {
		synctest.Test(t, func(t *testing.T) {
			f, d, file := fake(t, tpm.P256)
			f.Before = func(tpm2.TPMCC, int) (tpm2.TPMRC, error) { return rc, nil }
			_, err := d.Load(t.Context(), file)
			wantKind(t, err, tpm.Unavailable)
		})
	}
}

type panicking struct{ io.Writer }

func (panicking) Read([]byte) (int, error) { panic("an unexpected response") }
func (panicking) Close() error             { return nil }

func TestAPanicOfTheLibraryIsAnError(t *testing.T) {
	d := &tpm.Device{Open: func(string) (io.ReadWriteCloser, error) { return panicking{io.Discard}, nil }}
	_, err := d.Status(t.Context())
	wantKind(t, err, tpm.Failed)
}

func TestAPanicOfTheLibraryLeavesNoKeyInTheTPM(t *testing.T) {
	for _, row := range []struct {
		a       tpm.Algorithm
		command tpm2.TPMCC
	}{{tpm.P256, tpm2.TPMCCGetCapability}, {tpm.RSA2048, tpm2.TPMCCSign}} {
		synctest.Test(t, func(t *testing.T) {
			f, d, file := fake(t, row.a)
			f.Before = only(row.command, func(int) (tpm2.TPMRC, error) { panic("an unexpected response") })
			_, err := d.Load(t.Context(), file)
			wantKind(t, err, tpm.Failed)
		})
	}
}

func TestAfterTheCancellationOfAnOperationTheDeviceIsNotOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opened := 0
		d := &tpm.Device{Open: func(string) (io.ReadWriteCloser, error) {
			if opened++; opened > 1000 { // without an end, it would never reach the deadline, because no time passes
				return nil, io.ErrUnexpectedEOF
			}
			return nil, syscall.EBUSY
		}}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := d.Status(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
		synctest.Wait()
		if opened > 10 {
			t.Errorf("the device was opened %d times", opened)
		}
	})
}

func TestCloseDuringSignaturesEndsThoseThatHaveNotBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d, file := fake(t, tpm.P256)
		k := must(d.Load(t.Context(), file))(t)
		f.Before = only(tpm2.TPMCCSign, func(int) (tpm2.TPMRC, error) { time.Sleep(20 * time.Second); return 0, nil })
		before := f.Count(tpm2.TPMCCSign)
		results := make(chan error)
		for range 2 {
			go func() { results <- sign(k) }()
			synctest.Wait()
		}
		wantKind(t, k.Close(), tpm.Slow)
		failed := 0
		for range 2 {
			if err := <-results; err != nil {
				failed++
				wantKind(t, err, tpm.Failed)
			}
		}
		if n := f.Count(tpm2.TPMCCSign) - before; failed != 1 || n != 1 {
			t.Errorf("%d signatures failed, and the TPM received %d requests to sign", failed, n)
		}
	})
}

func TestACommandThatTheKernelRefusesIsUnsupported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d, file := fake(t, tpm.P256)
		const resourceManager = 11 << 16
		f.Before = only(tpm2.TPMCCLoad, func(int) (tpm2.TPMRC, error) { return resourceManager | tpm2.TPMRCCommandCode, nil })
		_, err := d.Load(t.Context(), file)
		wantKind(t, err, tpm.Unsupported)
	})
}

func TestTwoKeysShareOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, d, file := fake(t, tpm.P256)
		first, second := must(d.Load(t.Context(), file))(t), must(d.Load(t.Context(), file))(t)
		done := make(chan error)
		for _, k := range []*tpm.Key{first, second} {
			go func() {
				for range 10 {
					if err := sign(k); err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
		}
		if err := errors.Join(<-done, <-done); err != nil {
			t.Error(err)
		}
		if f.Connections() != 1 || f.Loaded() != 2 {
			t.Errorf("%d connections, %d keys", f.Connections(), f.Loaded())
		}
		if err := errors.Join(first.Close(), first.Close(), sign(second), second.Close()); err != nil {
			t.Error(err)
		}
		if err := sign(second); err == nil {
			t.Error("a closed key signs")
		}
	})
}
