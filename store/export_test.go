package store

// OpenStepped is Open with a function that is called before each step that changes the
// state directory.
var OpenStepped = open

// ForgetStepped is Forget with a function that is called before each step.
var ForgetStepped = forget

// EqualJSON compares two texts as JSON values.
var EqualJSON = equalJSON

// Environment returns the content of state.env.
var Environment = environment

// EnvironmentGeneration reads the generation from a state.env.
var EnvironmentGeneration = environmentGeneration
