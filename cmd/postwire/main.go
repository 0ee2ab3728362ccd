// Command postwire relays webhooks to message brokers.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/terminal"
)

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2 // wrong usage or configuration
)

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		// A second signal ends the process at once. Acknowledged events are stored.
		second := <-signals
		fmt.Fprintln(os.Stderr, "postwire: stopped at once by a second signal:", second)
		os.Exit(exitSignal(second))
	}()
	os.Exit(execute(ctx, os.Args[1:]))
}

// exitSignal is the exit code after a signal, as in shells: 128 and the number.
func exitSignal(s os.Signal) int {
	if s, ok := s.(syscall.Signal); ok {
		return 128 + int(s)
	}
	return exitFailed
}

// execute runs one command line and returns its exit code.
func execute(ctx context.Context, args []string) int {
	started := false      // cobra's own errors come before a command starts
	root := rootCommand() //nolint:contextcheck // cobra passes the context
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	root.SetArgs(args)
	// Printed texts may come from senders, brokers and servers: escape control characters.
	out, errs := terminal.NewWriter(os.Stdout), terminal.NewWriter(os.Stderr)
	root.SetOut(out)
	root.SetErr(errs)
	err := errors.Join(root.ExecuteContext(ctx), out.Flush(), errs.Flush())
	if err == nil {
		return 0
	}
	fmt.Fprintln(errs, "postwire:", err)
	if !started {
		fmt.Fprintln(errs, "see 'postwire --help'")
		return exitUsage
	}
	if _, wrong := errors.AsType[config.Problems](err); wrong || errors.Is(err, errUsage) {
		return exitUsage
	}
	return exitFailed
}

// rootCommand returns the command postwire with every subcommand.
func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:               "postwire",
		Short:             "Relay webhooks to message brokers, durably and at-least-once",
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.AddCommand(serveCommand(), devCommand(), sendCommand(), simulateCommand(), registerCommand(), unregisterCommand(), rotateSecretCommand(), reconcileCommand(), statusCommand(), clusterCommand(), logLevelCommand(), reloadCommand(), tailCommand(), eventsCommand(), dlqCommand(), replayCommand(), sinksCommand(), journalCommand(), configCommand(), asyncapiCommand(), versionCommand())
	return root
}

// errUsage marks a wrong command line.
var errUsage = errors.New("wrong usage")
