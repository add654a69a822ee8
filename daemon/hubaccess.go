package daemon

import (
	"context"
	"errors"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/modules"
	"github.com/dpsd-project/dpsd/redact"
	"github.com/dpsd-project/dpsd/store"
)

// hubAccess is what an attempt needs to sign in at the hub as the device.
type hubAccess struct {
	settings   Settings
	secrets    attest.Secrets
	record     store.Record
	credential attest.Credential // with which DPS assigned the device
}

// AskHub requests the list of the device's modules from the hub of a record over HTTPS, with the
// credential that dpsd itself uses. This changes nothing at the hub, and does not end the connection
// of a client. Unless the error contains a *hub.Error, there was no response. AskHub adds the secrets
// that it sends to known.
func AskHub(ctx context.Context, settings *Settings, secrets attest.Secrets, state store.Options, rec store.Record, known *redact.Known) error {
	a := hubAccess{*settings, secrets, rec, hubCredential(settings.Credentials, assignedBy(state.Directory, state.RuntimeDirectory), rec)}
	client, closing, err := a.client(ctx, time.Now, known)
	if err != nil {
		return err
	}
	defer closing()
	_, err = client.List(ctx)
	return err
}

// client returns a client with the credential of the device, and a function that releases its
// key. It adds the secrets that the client sends to known.
func (a *hubAccess) client(ctx context.Context, now func() time.Time, known *redact.Known) (client *modules.Client, closing func(), err error) {
	client = &modules.Client{Device: deviceOf(a.record), Now: now}
	if client.Dialer, err = a.settings.connecting(a.secrets); err != nil {
		return nil, nil, err
	}
	client.Dialer.Sessions = nil // these sessions belong to DPS
	known.Add([]byte(client.Dialer.ProxyPassword()))
	credential := signingIn(a.record, a.credential)
	if key, is := credential.(attest.SymmetricKey); is {
		client.MAC = func(ctx context.Context, statement []byte) ([]byte, error) { return key.MAC(ctx, a.secrets, statement) }
		return client, func() {}, nil
	}
	proof, err := credential.Prove(ctx, attest.Subject{RegistrationID: a.record.RegistrationID}, a.secrets, now())
	if err != nil && !errors.As(err, new(*attest.CertificateError)) { // the hub decides about the dates
		return nil, nil, err
	}
	client.Certificate = proof.Certificate
	return client, func() { _ = proof.Close() }, nil // an error of Close does not matter
}

// signingIn returns the credential with which a device signs in at its hub: the issued
// certificate, if there is one, or the credential with which DPS assigned the device.
func signingIn(rec store.Record, onboarding attest.Credential) attest.Credential {
	if c := rec.Certificate; c != nil {
		return attest.X509{Certificate: attest.Reference{File: c.CertificateFile}, PrivateKey: attest.Reference{File: c.PrivateKeyFile}}
	}
	return onboarding
}
