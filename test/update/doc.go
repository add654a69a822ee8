// Package update tests an earlier and the current version of dpsd alternately with one state
// directory, as on a gateway with A/B updates: each version is in one of two slots, and the state is
// on a separate partition.
package update
