# Entry of the ring-3 test guest: 64-bit mode, CPL 0, %rsi = boot_params, as the
# Linux 64-bit boot protocol has it. Loads the static page tables and GDT and
# drops to CPL 3 with IOPL 3, where ports can be used and code runs natively on
# every KVM. No interrupts, no IDT: a fault is a triple fault, a RESET event.
# Two ways in: Linux's 64-bit entry (thaw, Firecracker), and for QEMU and Cloud
# Hypervisor the PVH one: 32-bit, no paging, %ebx = hvm_start_info. An ELF note
# names it.
	.code64
	.section .text.start, "ax"
	.globl _start
_start:
	cli
	movq	%rsi, %rdi
	xorl	%esi, %esi
	leaq	pml4(%rip), %rax
	movq	%rax, %cr3
	lgdt	gdt_ptr(%rip)
to_ring3:
	leaq	stack_top(%rip), %rsp	# PVH gives none
	movq	%rsp, %rax
	pushq	$0x1b			# user data, RPL 3
	pushq	%rax
	pushq	$0x3002			# IOPL 3, IF 0
	pushq	$0x23			# user code, RPL 3
	leaq	user(%rip), %rax
	pushq	%rax
	iretq
user:
	xorl	%ebp, %ebp
	call	ring3_main
1:	jmp	1b

	.code32
pvh_start:
	cli
	lgdt	gdt_ptr
	movl	$0x20, %eax		# PAE
	movl	%eax, %cr4
	movl	$pml4, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx	# EFER.LME
	rdmsr
	orl	$0x100, %eax
	wrmsr
	movl	$0x80000011, %eax	# paging, protected mode
	movl	%eax, %cr0
	ljmp	$0x08, $1f
	.code64
1:	movl	%ebx, %edi
	movl	$1, %esi
	# KVM-PVM forgets the IOPL, so there ports are open to ring 3 by the TSS's
	# bitmap alone. Linux's entry comes with a TSS that has all open by chance (at
	# address 0, limit 0xfffff); PVH's has no bitmap.
	movl	$tss, %eax
	movw	%ax, gdt_tss + 2
	shrl	$16, %eax
	movb	%al, gdt_tss + 4
	movb	%ah, gdt_tss + 7
	movl	$0x28, %eax
	ltr	%ax
	jmp	to_ring3

	.section .note.pvh, "a", @note
	.balign	4
	.long	4, 4, 18		# XEN_ELFNOTE_PHYS32_ENTRY
	.asciz	"Xen"
	.long	pvh_start

	.section .data
	.balign	16
gdt:
	.quad	0
	.quad	0x00af9b000000ffff	# 0x08 kernel code
	.quad	0x00cf93000000ffff	# 0x10 kernel data
	.quad	0x00cff3000000ffff	# 0x18 user data
	.quad	0x00affb000000ffff	# 0x20 user code
gdt_tss:
	.quad	0x0000890000000000 + tss_end - tss - 1 # 0x28
	.quad	0
gdt_end:
gdt_ptr:
	.word	gdt_end - gdt - 1
	.quad	gdt

tss:	.skip	102
	.word	104			# the I/O bitmap: all open
	.skip	8192
	.byte	0xff
tss_end:

# Identity map of the first 8 GiB with 2 MiB pages, open to ring 3: present,
# writable, user, accessed, dirty, page size.
	.balign	4096
pml4:
	.quad	pdpt + 0x27
	.fill	511, 8, 0
pdpt:
	.set	i, 0
	.rept	8
	.quad	pd + i * 4096 + 0x27
	.set	i, i + 1
	.endr
	.fill	504, 8, 0
pd:
	.set	i, 0
	.rept	8 * 512
	.quad	i * 0x200000 + 0xe7
	.set	i, i + 1
	.endr

	.section .bss
	.balign	16
	.skip	16384
stack_top:
	.section .note.GNU-stack, "", @progbits
