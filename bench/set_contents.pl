#!/usr/bin/perl
# Replace files as Proxmox VE's Perl library does (file_set_contents), and time each replacement.
#
# Reads batches: lines "TARGET<tab>TEMPORARY<tab>BYTE", the last one empty. Writes a line per batch,
# the microseconds of each replacement by a file of 1 KiB of BYTE. A batch is read before it begins.
use strict;
use warnings;
use Fcntl qw(O_CREAT O_EXCL O_WRONLY);
use IO::File;
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);

sub replace {
    my ($target, $temporary, $content) = @_;
    my $file = IO::File->new($temporary, O_WRONLY | O_CREAT | O_EXCL, 0644)
        or die "unable to open '$temporary': $!\n";
    print $file $content or die "unable to write '$temporary': $!\n";
    close $file or die "unable to close '$temporary': $!\n";
    rename $temporary, $target or die "unable to rename to '$target': $!\n";
}

$| = 1;
until (eof STDIN) {
    my (@batch, @times);
    while (defined(my $line = <STDIN>)) {
        chomp $line;
        last if $line eq '';
        push @batch, [split /\t/, $line];
    }
    my $begin = clock_gettime(CLOCK_MONOTONIC) + 0.002; # until then it is put on a CPU
    1 while clock_gettime(CLOCK_MONOTONIC) < $begin;
    for my $job (@batch) {
        my ($target, $temporary, $byte) = @$job;
        my $content = $byte x 1024;
        my $start = clock_gettime(CLOCK_MONOTONIC);
        replace($target, $temporary, $content);
        push @times, sprintf '%.1f', (clock_gettime(CLOCK_MONOTONIC) - $start) * 1e6;
    }
    print "@times\n";
}
