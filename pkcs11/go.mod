// dpsd-signer-pkcs11 is a separate module, because it needs cgo: a PKCS#11 library is C. dpsd
// itself is static, and talks to it over a Unix socket.
module github.com/dpsd-project/dpsd/pkcs11

go 1.26.0

require (
	github.com/coreos/go-systemd/v22 v22.7.0
	github.com/dpsd-project/dpsd v0.0.0
	github.com/miekg/pkcs11 v1.1.2
	golang.org/x/sys v0.49.0
)

replace github.com/dpsd-project/dpsd => ../
