package admin

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// LogLevel is the least important level that is logged.
type LogLevel struct {
	Level string `json:"level" enum:"debug,info,warn,error" doc:"Least important level that is logged. A change lasts until the process ends, or the configuration's log.level is changed."`
}

func (a *API) logLevel(api huma.API) {
	type output struct{ Body LogLevel }
	now := func() *output { return &output{LogLevel{a.Level.Level().String()}} }
	huma.Register(api, operation("show-log-level", http.MethodGet, "/log-level", "The level of the log"),
		func(context.Context, *struct{}) (*output, error) { return now(), nil })
	huma.Register(api, operation("set-log-level", http.MethodPut, "/log-level", "Change the level of the log while the relay runs", 422),
		func(_ context.Context, in *struct{ Body LogLevel }) (*output, error) {
			level, err := zapcore.ParseLevel(in.Body.Level)
			if err != nil {
				return nil, huma.Error422UnprocessableEntity(err.Error())
			}
			if before := a.Level.Level(); before != level {
				a.Level.SetLevel(min(before, level)) // this is to be told in either
				a.Log.Warn("the level of the log is changed", zap.Stringer("before", before), zap.Stringer("now", level))
				a.Level.SetLevel(level)
			}
			return now(), nil
		})
}

// LogLevel asks for the level of the log.
func (c *Client) LogLevel(ctx context.Context) (l LogLevel, err error) {
	return l, c.ask(ctx, http.MethodGet, "/log-level", nil, &l)
}

// SetLogLevel changes the level of the log.
func (c *Client) SetLogLevel(ctx context.Context, level string) (l LogLevel, err error) {
	return l, c.ask(ctx, http.MethodPut, "/log-level", LogLevel{level}, &l)
}
