// Package update tests an earlier and the current version of dpsd in turn on one state directory,
// as on a gateway that is updated by images: each version is in one of two slots, and the state is
// on a partition of its own.
package update
