package admin

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// LogLevel is the minimum level of logged messages.
type LogLevel struct {
	Level string `json:"level" enum:"debug,info,warn,error" doc:"Minimum level of logged messages. A change lasts until the relay stops, or a reload changes log.level."`
}

func (a *API) logLevel(api huma.API) {
	type output struct{ Body LogLevel }
	current := func() *output { return &output{LogLevel{a.Level.Level().String()}} }
	huma.Register(api, operation("show-log-level", http.MethodGet, "/log-level", "Show the log level"),
		func(context.Context, *struct{}) (*output, error) { return current(), nil })
	huma.Register(api, operation("set-log-level", http.MethodPut, "/log-level", "Set the log level of the running relay", 422),
		func(_ context.Context, in *struct{ Body LogLevel }) (*output, error) {
			level, err := zapcore.ParseLevel(in.Body.Level)
			if err != nil {
				return nil, huma.Error422UnprocessableEntity(err.Error())
			}
			if before := a.Level.Level(); before != level {
				a.Level.SetLevel(min(before, level)) // so that the change is logged
				a.Log.Warn("log level changed", zap.Stringer("previous", before), zap.Stringer("level", level))
				a.Level.SetLevel(level)
			}
			return current(), nil
		})
}

// LogLevel returns the log level.
func (c *Client) LogLevel(ctx context.Context) (l LogLevel, err error) {
	return l, c.call(ctx, http.MethodGet, "/log-level", nil, &l)
}

// SetLogLevel sets the log level.
func (c *Client) SetLogLevel(ctx context.Context, level string) (l LogLevel, err error) {
	return l, c.call(ctx, http.MethodPut, "/log-level", LogLevel{level}, &l)
}
