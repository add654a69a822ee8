package store

// OpenStepped is Open with a function that is called ahead of each step that
// changes the state directory.
var OpenStepped = open

// EqualJSON compares two texts as JSON values.
var EqualJSON = equalJSON

// Environment returns the content of state.env.
var Environment = environment

// EnvironmentGeneration reads the generation from a state.env.
var EnvironmentGeneration = environmentGeneration
