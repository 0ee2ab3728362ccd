package app

import (
	"encoding/json"
	"fmt"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/postwire/postwire/config"
)

// scrubbed removes secrets from the lines of a log. It changes the log itself, so that
// every holder of the log writes through the scrubber.
func (l *Log) scrubbed(s *config.Scrubber) {
	l.Logger = l.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core { return &scrubbedCore{core, s} }))
}

// scrubbedCore removes secrets from messages and fields.
type scrubbedCore struct {
	zapcore.Core
	scrub *config.Scrubber
}

func (c *scrubbedCore) With(fields []zapcore.Field) zapcore.Core {
	return &scrubbedCore{c.Core.With(c.fields(fields)), c.scrub}
}

func (c *scrubbedCore) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Core.Check(e, nil) == nil { // level or sampling
		return to
	}
	return to.AddCore(e, c)
}

func (c *scrubbedCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	e.Message = c.scrub.Text(e.Message)
	return c.Core.Write(e, c.fields(fields))
}

// fields returns fields without secrets.
func (c *scrubbedCore) fields(fields []zapcore.Field) []zapcore.Field {
	clean := make([]zapcore.Field, len(fields))
	for i, f := range fields {
		clean[i] = c.field(f)
	}
	return clean
}

func (c *scrubbedCore) field(f zapcore.Field) zapcore.Field {
	switch f.Type {
	case zapcore.StringType:
		f.String = c.scrub.Text(f.String)
	case zapcore.ErrorType:
		if err, ok := f.Interface.(error); ok {
			// as text, because zap would also print wrapped errors
			return zap.String(f.Key, c.text(err.Error))
		}
	case zapcore.StringerType:
		if s, ok := f.Interface.(fmt.Stringer); ok {
			return zap.String(f.Key, c.text(s.String))
		}
	case zapcore.ByteStringType, zapcore.ReflectType, zapcore.ArrayMarshalerType, zapcore.ObjectMarshalerType, zapcore.InlineMarshalerType:
		m := zapcore.NewMapObjectEncoder()
		f.AddTo(m)
		text, err := json.Marshal(m.Fields)
		if clean := c.scrub.Text(string(text)); err != nil || clean != string(text) {
			return zap.String(f.Key, clean)
		}
	}
	return f
}

// text calls a method that may panic on a nil pointer, as zap does.
func (c *scrubbedCore) text(method func() string) (text string) {
	defer func() {
		if r := recover(); r != nil {
			text = "<nil>"
		}
	}()
	return c.scrub.Text(method())
}
