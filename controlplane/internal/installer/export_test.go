package installer

// NewFrom lets tests choose what was built.
var NewFrom = newFrom
