package audit

// WithoutSlack drops entries as soon as they are too old.
func (l *Log) WithoutSlack() { l.slack = 0 }
