// Package bare tests dpsd without systemd: in namespaces with a read-only root, as an
// ordinary user and as process 1, and with other service managers. "make test-bare" builds
// what the tests need, and runs them.
package bare
